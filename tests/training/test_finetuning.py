"""Fine-tuning from another run, with the vision encoder, at a larger size (paper, B.2.2)."""

import dataclasses
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import finetune
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.checkpoint.export import export, open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training import logs, resume, towers
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TowersConfig, TrainConfig
from flamingo_jax.training.optimizer import VisionOptimizerConfig
from tests.sharding import chips
from tests.training import small

ONE = jax.devices()[:1]
STEPS, RATE, VISION_RATE = 4, 1e-2, 1e-3
TRAINED = {"resampler", "media", "xattn", "new_tokens", "vision"}


def small_of(stage):
    """Returns the small model; its vision encoder has two blocks, for stochastic depth."""
    config = small.get_config(stage)
    config.model.vision.depths = (2,)
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with world/, and random exports of one model: towers/{lm,vision}, flamingo/."""
    directory = tmp_path_factory.mktemp("place")
    world = small.make_world(directory / "world")
    small.make_towers(directory / "towers", world, small_of)
    small.make_export(
        directory / "flamingo", world, "flamingo", config_of=small_of, rng=np.random.default_rng(1)
    )
    return directory


@pytest.fixture(scope="module")
def config(place):
    """Fine-tuning in float32, the vision encoder with stochastic depth and a tenth of the rate."""
    described = small.with_world(small_of("flamingo"), place / "world")
    described.initial, described.unfrozen = str(place / "flamingo"), ("vision",)
    described.steps = STEPS
    described.towers.update(lm=None, vision=None)
    described.data.image_size = 40
    described.model.vision.stochastic_depth = 0.5
    described.optimizer.update(learning_rate=RATE, warmup_steps=0, weight_decay=0.0)
    described.optimizer.vision.learning_rate = VISION_RATE
    with described.data.datasets.unlocked():
        del described.data.datasets["pages"]
    return from_dict(TrainConfig, described)


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """(workdir, last state, reported lines) of a finished run; not to be changed."""
    workdir, lines = tmp_path_factory.mktemp("run"), []
    return workdir, run_lib.train(config, workdir, devices=ONE, report=lines.append), lines


def changed(config, **fields):
    return dataclasses.replace(config, **fields)


def part(path):
    return path.split("/")[1]


def test_trained_weights_begin_where_the_other_run_ended_and_move_by_their_own_rate(done, place):
    """An update of Adam moves a weight by about its rate; random weights are 100 times farther."""
    before, after = (
        trees.flatten(open_checkpoint(where).params)
        for where in (place / "flamingo", done[0] / "export")
    )
    assert before.keys() == after.keys()
    largest = dict.fromkeys((*TRAINED, "lm"), 0.0)
    for path, leaf in after.items():
        difference = np.asarray(leaf, np.float32) - np.asarray(before[path], np.float32)
        moved = float(np.max(np.abs(difference)))
        largest[part(path)] = max(largest[part(path)], moved)
    assert largest.pop("lm") == 0.0
    vision = largest.pop("vision")
    assert VISION_RATE / 2 < vision < 2 * STEPS * VISION_RATE
    for name, moved in largest.items():
        assert RATE / 2 < moved < 2 * STEPS * RATE, name


def test_both_rates_are_in_the_log_and_the_beginning_in_what_is_reported(done, place):
    rows = logs.read(done[0] / "metrics.jsonl")
    np.testing.assert_allclose([row["learning_rate"] for row in rows], RATE, rtol=1e-6)
    np.testing.assert_allclose(
        [row["learning_rate/vision"] for row in rows], VISION_RATE, rtol=1e-6
    )
    assert f"starts from {place / 'flamingo'}, of {STEPS}" in done[2][0]


def test_the_export_is_self_contained_and_the_newest_step_is_the_same_model(done, place):
    workdir, state, _ = done
    exported, step = open_checkpoint(workdir / "export"), open_checkpoint(workdir)
    assert exported.kind == "flamingo" and exported.preprocessing["image_size"] == 40
    jax.tree.map(np.testing.assert_array_equal, exported.params, step.params)
    assert {part(path) for path in trees.flatten(state.trainable)} == TRAINED
    # The record names the export of the frozen tower; its weights are not copied.
    frozen = logs.paths.read_json(workdir / "config.json")["frozen"]
    directory, card = read_card(place / "flamingo")
    assert frozen == {
        "lm": {
            "path": str(directory),
            "hash": card["content_hash"],
            "source": "flamingo/lm",
            "target": "flamingo/lm",
        }
    }


def test_a_run_in_two_halves_is_the_whole_run_and_reads_its_beginning_once(
    done, config, tmp_path, monkeypatch
):
    """Bit for bit, also with stochastic depth."""
    run_lib.train(changed(config, steps=2), tmp_path, devices=ONE)
    for name in ("start", "check_start"):
        monkeypatch.setattr(
            towers, name, lambda *args: pytest.fail("the second half read the beginning again")
        )
    second = run_lib.train(config, tmp_path, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, second.saved(), done[1].saved())
    losses = lambda workdir: [
        (row["step"], row["loss"]) for row in logs.read(workdir / "metrics.jsonl")
    ]
    assert losses(tmp_path) == losses(done[0])


def layout_of(config):
    """Where the arrays of a run's state are, on one device."""
    resolved = config.resolved(pieces_of(config))
    return run_lib.compile(resolved, make_mesh(config.mesh, ONE)).layout


def pieces_of(config):
    return resume.tokenizer_of(config).vocab_size


def test_a_tower_that_is_given_comes_before_the_initial_models(config, place):
    """A tower may be from a contrastive run or a lone encoder; other weights are `initial`'s."""
    contrastive = trees.subtree(
        open_checkpoint(place / "towers" / "vision").params, "contrastive/vision"
    )
    alone = {f"vision/{module}": weights for module, weights in contrastive.items()}
    card = read_card(place / "towers" / "vision")[1]
    export(
        place / "vision",
        alone,
        kind="vision",
        config=card["config"],
        tokenizer=None,
        preprocessing={},
        step=0,
    )
    layout = layout_of(config)
    whole = open_checkpoint(place / "flamingo").params
    for given in (place / "towers" / "vision", place / "vision"):
        run_config = changed(config, towers=TowersConfig(vision=str(given))).resolved(
            pieces_of(config)
        )
        started = towers.start(run_config, layout.abstract.trainable)
        jax.tree.map(
            np.testing.assert_array_equal, trees.subtree(started, "flamingo/vision"), contrastive
        )
        for name in TRAINED - {"vision"}:
            where = f"flamingo/{name}"
            jax.tree.map(
                np.testing.assert_array_equal,
                trees.subtree(started, where),
                trees.subtree(whole, where),
            )
        assert list(towers.frozen_records(run_config)) == ["lm"]
        frozen = towers.load(run_config, layout.stored_frozen)
        jax.tree.map(
            np.testing.assert_array_equal, frozen, {module: whole[module] for module in frozen}
        )


def test_further_training_of_a_whole_flamingo_needs_no_other_towers(config, place):
    """If nothing is unfrozen, both towers come from `initial`."""
    run_config = changed(
        config, unfrozen=(), optimizer=changed(config.optimizer, vision=VisionOptimizerConfig())
    )
    run_config = run_config.resolved(pieces_of(config))
    records = towers.frozen_records(run_config)
    assert {name: record["source"] for name, record in records.items()} == {
        "lm": "flamingo/lm",
        "vision": "flamingo/vision",
    }
    layout = layout_of(run_config)
    whole = open_checkpoint(place / "flamingo").params
    started = trees.merge(
        towers.start(run_config, layout.abstract.trainable),
        towers.load(run_config, layout.stored_frozen),
    )
    jax.tree.map(np.testing.assert_array_equal, started, whole)


@pytest.mark.parametrize("stage", ["language_model", "contrastive"])
def test_any_stage_may_go_on_from_an_export_of_its_own(place, stage):
    source = place / "towers" / {"language_model": "lm", "contrastive": "vision"}[stage]
    run_config = from_dict(TrainConfig, small.with_world(small_of(stage), place / "world"))
    run_config = changed(run_config, initial=str(source)).resolved(pieces_of(run_config))
    towers.check_start(run_config)
    layout = layout_of(run_config)
    jax.tree.map(
        np.testing.assert_array_equal,
        towers.start(run_config, layout.abstract.trainable),
        open_checkpoint(source).params,
    )


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Returns a function that checks that a config is refused before anything is compiled."""
    monkeypatch.setattr(
        run_lib, "make_step", lambda *args, **kwargs: pytest.fail("a step was made")
    )

    def run(config, message, error=ConfigError):
        with pytest.raises(error, match=message):
            run_lib.train(config, tmp_path, devices=ONE)

    return run


def test_what_a_run_cannot_begin_with_is_refused(config, place, refused):
    lm = str(place / "towers" / "lm")
    refused(
        changed(config, initial=str(place / "no")),
        r"config\.initial: There is no export at .*no",
        CheckpointError,
    )
    both = TowersConfig(lm=lm, vision=str(place / "towers" / "vision"))
    refused(
        changed(config, initial=lm, towers=both),
        r"kind 'language_model'; expected one of a flamingo run",
        CheckpointError,
    )
    refused(
        changed(config, towers=TowersConfig(vision=lm)),
        r"towers\.vision: .*has no tower 'vision'; expected one of contrastive, vision, flamingo",
        CheckpointError,
    )
    refused(changed(config, initial=None), r"towers\.lm is None.*--config\.initial")
    model = changed(config.model, resampler=changed(config.model.resampler, activation="gelu"))
    refused(
        changed(config, model=model),
        r"run of config\.initial.*model\.resampler.*\n.*activation: 'squared_relu' -> 'gelu'",
    )
    tokens = changed(config.model, new_tokens=("<EOC>",))
    refused(changed(config, model=tokens), r"new_tokens")


@pytest.mark.parametrize("field", ["initial", "towers.lm", "towers.vision"])
def test_damaged_weights_are_refused(config, place, tmp_path, refused, field):
    """Those of a frozen tower, of one that is trained, and of the model to go on from."""
    source = {"initial": "flamingo", "towers.lm": "towers/lm", "towers.vision": "towers/vision"}
    damaged = pathlib.Path(shutil.copytree(place / source[field], tmp_path / "copy"))
    file = max(damaged.rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    fields = {"initial": str(damaged)}
    if field != "initial":
        part = field.partition(".")[2]
        fields = {"towers": changed(config.towers, **{part: str(damaged)})}
    refused(
        changed(config, **fields),
        rf"The (tower '\w+'|config\.initial) {damaged} is damaged: weights/.*{file.name}: changed",
        CheckpointError,
    )


def test_settings_that_do_nothing_are_refused(config):
    with pytest.raises(ValueError, match="this flamingo run trains no vision encoder"):
        changed(config, unfrozen=())
    with pytest.raises(ValueError, match="the contrastive stage freezes nothing"):
        changed(config, stage="contrastive")


def test_the_80b_is_finetuned_with_its_encoders_masters_split_over_all_chips():
    """configs/finetune.py as shapes: each chip keeps a 128th of NFNet-F6's float32 weights."""
    config = from_dict(TrainConfig, finetune.get_config("vqav2")).resolved(32_000)
    mesh = chips.mesh(*config.mesh.sizes().values())
    abstract = run_lib.compile(config, mesh).layout.abstract
    frozen, trained = trees.flatten(abstract.frozen), trees.flatten(abstract.trainable)
    assert {part(path) for path in frozen} == {"lm"} and {part(path) for path in trained} == TRAINED
    vision = {path: leaf for path, leaf in trained.items() if part(path) == "vision"}
    assert sum(leaf.size for leaf in vision.values()) == 435_286_116  # NFNet-F6 without its head
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in vision.values())
    assert mesh.size == 128 and held < 1.05 * 435_286_116 / 128
