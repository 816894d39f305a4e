"""A whole stage on a small world: its files, its resumption, what it refuses to compile."""

import contextlib
import dataclasses
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint import store
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.guard import Guard
from flamingo_jax.core.paths import PathError
from flamingo_jax.core.precision import Policy
from flamingo_jax.core.preemption import EndedAsAsked
from flamingo_jax.data import schema
from flamingo_jax.data.config import NO_AUGMENTATION
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.models.sizes import TILED_VITS
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from flamingo_jax.training import logs
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.batches import batches, batches_of_update
from flamingo_jax.training.callbacks import Moment, ProbeNotReached, report_rejected
from flamingo_jax.training.config import ResumeConfig, TrainConfig, UntilConfig
from flamingo_jax.training.datasets_per_step import positions_at
from flamingo_jax.training.state import TrainState
from tests.training import small

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def config(world):
    """Returns a language_model run of one narrow layer."""
    config = from_dict(TrainConfig, small.with_world(small.get_config("language_model"), world))
    lm = dataclasses.replace(config.model.lm, num_layers=1)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """(workdir, last state, reported lines) of a finished run; not to be changed."""
    workdir, lines = tmp_path_factory.mktemp("run"), []
    return workdir, run_lib.train(config, workdir, devices=ONE, report=lines.append), lines


@pytest.fixture
def never_compiles(monkeypatch):
    """Fails a test that makes a step."""
    monkeypatch.setattr(
        run_lib, "make_step", lambda *args, **kwargs: pytest.fail("a step was made")
    )


def test_a_run_leaves_checkpoints_metrics_config_and_an_export(done, config):
    workdir, state, lines = done
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "export",
        "config.json",
        "metrics.jsonl",
        "run.json",
    }
    assert [row["step"] for row in logs.read(workdir / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    resolved = json.loads((workdir / "config.json").read_text())
    assert resolved["model"]["lm"]["vocab_size"] > 0  # the tokenizer's
    assert resolved["model"]["vision"] is None  # not of this stage
    opened = open_checkpoint(workdir / "export")
    assert (opened.kind, opened.step, opened.new_tokens) == ("language_model", 6, ())
    jax.tree.map(np.testing.assert_array_equal, opened.params, state.params())
    assert "starts of 6" in lines[0]


def test_the_newest_step_opens_too(done):
    workdir, state, _ = done
    opened = open_checkpoint(workdir)
    assert opened.step == 6
    jax.tree.map(np.testing.assert_array_equal, opened.params, state.params())


def test_a_finished_run_does_nothing_when_started_again(done, config):
    workdir, state, _ = done
    before, lines = (workdir / "metrics.jsonl").read_text(), []
    again = run_lib.train(config, workdir, devices=ONE, report=lines.append)
    jax.tree.map(np.testing.assert_array_equal, again.saved(), state.saved())
    assert (workdir / "metrics.jsonl").read_text() == before
    assert "is of step 6 already" in lines[-1]


def test_a_run_in_two_halves_is_the_whole_run(done, config, tmp_path):
    """The last states are equal bit for bit."""
    _, state, _ = done
    run_lib.train(dataclasses.replace(config, steps=4), tmp_path, devices=ONE)
    second = run_lib.train(config, tmp_path, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, second.saved(), state.saved())
    losses = lambda workdir: [
        (row["step"], row["loss"]) for row in logs.read(workdir / "metrics.jsonl")
    ]
    assert losses(tmp_path) == losses(done[0])
    assert open_checkpoint(tmp_path / "export").step == 6


class AskedToEnd(Guard):
    """Asks the run to end after some updates."""

    def __init__(self, after):
        super().__init__(None, saves=True)
        self._left = after

    def should_end(self):
        self._left -= 1
        return self._left == 0


def test_a_run_that_is_asked_to_end_again_and_again_is_the_whole_run(config, tmp_path):
    """Between two reports and two saves, and at the last update: losses, moments and weights."""
    hooks = dataclasses.replace(config.hooks, log_every=4, save_every=4)
    config = dataclasses.replace(config, hooks=hooks)
    whole = run_lib.train(config, tmp_path / "whole", devices=ONE)
    for before, step in ((0, 3), (3, 6)):
        with pytest.raises(EndedAsAsked, match=f"saved step {step}; the same command goes on"):
            run_lib.train(
                config, tmp_path / "asked", devices=ONE, guard=AskedToEnd(after=step - before)
            )
        assert store.steps(tmp_path / "asked")[-1] == step
        assert not (tmp_path / "asked" / "export").exists()
    last = run_lib.train(config, tmp_path / "asked", devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, last.saved(), whole.saved())
    assert open_checkpoint(tmp_path / "asked" / "export").step == 6
    rows = [
        [{**row, "step_seconds": 0} for row in logs.read(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "asked")
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [4, 6]


def test_another_config_is_refused_by_its_fields(done, config, never_compiles):
    changed = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5)
    )
    with pytest.raises(CheckpointError, match=r"optimizer\.learning_rate: 0\.01 -> 0\.5"):
        run_lib.train(changed, done[0], devices=ONE)


def test_a_run_may_go_on_in_chunks(done, config):
    text = dataclasses.replace(config.data.datasets["text"], chunks=2)
    data = dataclasses.replace(config.data, datasets={"text": text})
    again = run_lib.train(dataclasses.replace(config, data=data), done[0], devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, again.saved(), done[1].saved())


def test_a_run_of_an_older_version_goes_on(done, config, tmp_path, monkeypatch):
    """New fields must have their defaults, which change nothing; other values are refused."""
    read = store.read_item

    def older(workdir, step, item):
        found = read(workdir, step, item)
        if item == "config":
            del found["initial"], found["optimizer"]["vision"], found["optimizer"]["eps"]
        return found

    monkeypatch.setattr(store, "read_item", older)
    again = run_lib.train(config, done[0], devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, again.saved(), done[1].saved())
    changed = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, eps=0.5))
    with pytest.raises(CheckpointError, match=r"optimizer\.eps: 1e-08 -> 0\.5"):
        run_lib.train(changed, done[0], devices=ONE)


def test_a_logger_of_ones_own_that_fails_does_not_end_the_run(done, config, tmp_path):
    own = "tests.training.loggers.own_loggers:Offline"
    hooks, lines = dataclasses.replace(config.hooks, loggers=(own,)), []
    logged = dataclasses.replace(config, hooks=hooks)
    state = run_lib.train(logged, tmp_path, devices=ONE, report=lines.append)
    jax.tree.map(np.testing.assert_array_equal, state.saved(), done[1].saved())
    reason = "ConnectionError: no route to the service"
    assert f"{own}: 6 reports were not written: {reason}." in lines


def test_a_logger_that_cannot_be_made_is_refused_before_anything_is_compiled(
    config, tmp_path, never_compiles
):
    hooks = dataclasses.replace(config.hooks, loggers=("no_such_module:make",))
    with pytest.raises(ConfigError, match=r"config\.hooks\.loggers=no_such_module:make"):
        run_lib.train(dataclasses.replace(config, hooks=hooks), tmp_path, devices=ONE)


def test_unwritable_workdir_is_refused_before_anything_is_compiled(
    config, tmp_path, never_compiles
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PathError, match="Cannot make the directory .*file/run.*writable place"):
        run_lib.train(config, tmp_path / "file" / "run", devices=ONE)


def test_wrong_mesh_is_refused(config, tmp_path, never_compiles):
    with pytest.raises(ConfigError, match="needs 1 device"):
        run_lib.train(config, tmp_path)  # on all eight


def test_a_vocabulary_larger_than_the_models_is_refused(config, tmp_path, never_compiles):
    lm = dataclasses.replace(config.model.lm, vocab_size=8)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    with pytest.raises(ConfigError, match=r"vocab_size is 8, and the tokenizer .* has \d+ pieces"):
        run_lib.train(config, tmp_path, devices=ONE)


def _with_tiles(config, num_frames):
    """Returns the config of a model that sees tiles; it is checked as it is made."""
    datasets = {
        name: dataclasses.replace(dataset, num_frames=num_frames)
        for name, dataset in config.data.datasets.items()
    }
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vision=None, tiled_vit=TILED_VITS["tiny"]),
        data=dataclasses.replace(config.data, image_size=16, datasets=datasets),
    )


def test_what_a_model_that_sees_tiles_cannot_learn_from(world, tmp_path, never_compiles):
    stages = ("contrastive", "flamingo")
    contrastive, flamingo = (
        from_dict(TrainConfig, small.with_world(small.get_config(stage), world)) for stage in stages
    )
    with pytest.raises(ConfigError, match="the contrastive stage learns from images that are one"):
        _with_tiles(contrastive, 4)
    with pytest.raises(ConfigError, match=r"num_frames is 1; expected 4, the most tiles"):
        _with_tiles(flamingo, 1)
    with pytest.raises(ConfigError, match="tiles are not augmented: config.data.augment is"):
        run_lib.train(_with_tiles(flamingo, 4), tmp_path, devices=ONE)


@pytest.mark.slow
def test_a_model_that_sees_tiles_is_trained(world, tmp_path):
    """Both towers from nothing, on pictures of 2 x 2 tiles; then the checkpoint is opened."""
    config = small.with_world(small.get_config("flamingo"), world)
    config.steps, config.unfrozen = 2, ("vision", "lm")
    config.towers.update(lm=None, vision=None, random=("vision", "lm"))
    flamingo = _with_tiles(from_dict(TrainConfig, config), 4)
    data = dataclasses.replace(flamingo.data, augment=NO_AUGMENTATION)
    run_lib.train(dataclasses.replace(flamingo, data=data), tmp_path, devices=ONE)
    *_, last = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert last["step"] == 2 and np.isfinite(last["loss"])
    model = Flamingo.load(str(tmp_path))
    wide, red = np.full((20, 60, 3), 9, np.uint8), np.full((32, 32, 3), (250, 0, 0), np.uint8)
    scores = [model.score([image, "output :"], ["red", "blue"]) for image in (wide, red)]
    assert np.abs(np.subtract(*scores)).max() > 0


def test_unknown_probe_is_refused(config, tmp_path, never_compiles):
    until = UntilConfig(probe="lm_lokup")
    with pytest.raises(
        ConfigError, match=r"until\.probe is 'lm_lokup'; expected one of \['lm_lookup'\]"
    ):
        run_lib.train(
            dataclasses.replace(config, until=until),
            tmp_path,
            probes={"lm_lookup": lambda run, tokenizer: dict},
            devices=ONE,
        )


def test_a_probe_below_its_bound_ends_the_stage(config, tmp_path):
    probes = {
        "count": lambda run, tokenizer: (
            lambda params: {"weights": float(len(params)), "vocabulary": tokenizer.vocab_size}
        )
    }
    until = UntilConfig(probe="count", metric="weights", below=1e6, every=2)
    state = run_lib.train(
        dataclasses.replace(config, until=until), tmp_path, probes=probes, devices=ONE
    )
    assert int(state.step) == 2
    assert open_checkpoint(tmp_path / "export").step == 2


def test_a_probe_not_below_its_bound_in_time_is_an_error_and_nothing_is_exported(config, tmp_path):
    until = UntilConfig(probe="count", metric="weights", below=0.0, every=2)
    probes = {"count": lambda run, tokenizer: lambda params: {"weights": float(len(params))}}
    wanted = dataclasses.replace(config, until=until, steps=2)
    with pytest.raises(
        ProbeNotReached, match=r"count: weights is still not below 0\.0 after all 2 steps"
    ):
        run_lib.train(wanted, tmp_path, probes=probes, devices=ONE)
    assert not (tmp_path / "export").exists()
    accepted = dataclasses.replace(wanted, until=dataclasses.replace(until, required=False))
    run_lib.train(accepted, tmp_path, probes=probes, devices=ONE)
    assert open_checkpoint(tmp_path / "export").step == 2


def in_a_copy(done, tmp_path):
    """Returns a copy of a finished run, to go on from."""
    return shutil.copytree(done[0], tmp_path / "copy")


def with_rate(config, rate, steps=7, **resume):
    return dataclasses.replace(
        config,
        steps=steps,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        resume=ResumeConfig(**resume),
    )


def test_a_run_goes_on_with_another_learning_rate_by_name_and_never_forgets(done, config, tmp_path):
    workdir, allow = in_a_copy(done, tmp_path), ("optimizer.learning_rate",)
    changed = (
        r"optimizer\.learning_rate: 0\.01 -> 0\.001\n.*"
        r"by name: --config\.resume\.allow=optimizer\.learning_rate\."
    )
    with pytest.raises(CheckpointError, match=changed):
        run_lib.train(with_rate(config, 1e-3), workdir, devices=ONE)
    run_lib.train(with_rate(config, 1e-3, allow=allow), workdir, devices=ONE)
    rates = [row["learning_rate"] for row in logs.read(workdir / "metrics.jsonl")]
    np.testing.assert_allclose(rates[-2:], [1e-2, 1e-3], rtol=1e-6)  # float32
    recorded = [{"step": 6, "field": "optimizer.learning_rate", "change": "0.01 -> 0.001"}]
    assert store.read_item(workdir, 7, "config")["deviations"] == recorded
    # The new rate is the run's. A start with the first one is refused by name, too.
    with pytest.raises(CheckpointError, match=r"optimizer\.learning_rate: 0\.001 -> 0\.01"):
        run_lib.train(with_rate(config, 1e-2), workdir, devices=ONE)
    lines = []
    run_lib.train(with_rate(config, 1e-3), workdir, devices=ONE, report=lines.append)
    assert "This run went on at step 6 with optimizer.learning_rate 0.01 -> 0.001." in lines


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ({"allow": ("seed",)}, "'seed', which cannot change in a run"),
        ({"allow": ("model.lm.width",)}, "cannot change in a run"),
        ({"allow": ("optimizer.learning_rat",)}, "has no such field"),
        ({"skip_batches": ("txt:1:2",)}, r"dataset 'txt'; expected one of \['text'\]"),
        (
            {"skip_batches": ("text:4:5",)},
            r"skip_batches is text:4:5, and the checkpoint of step 6 was made with none, "
            r"after 6 batches of text",
        ),
    ],
)
def test_what_cannot_change_is_refused_by_name(done, config, never_compiles, resume, message):
    with pytest.raises(ConfigError, match=message):
        run_lib.train(with_rate(config, 1e-2, **resume), done[0], devices=ONE)


@pytest.fixture
def bad_batch(monkeypatch):
    """Batch 4 of the text has no finite loss."""
    whole = Mixture.batch

    def batch(self, name, t):
        found = whole(self, name, t)
        if t == 4:
            found = dataclasses.replace(found, loss_weights=found.loss_weights * np.float32("nan"))
        return found

    monkeypatch.setattr(Mixture, "batch", batch)


def test_a_bad_batch_stops_a_run_that_goes_on_without_it(done, config, tmp_path, bad_batch):
    """The message's own advice, and the record of it."""
    with pytest.raises(NonFiniteError) as caught:
        run_lib.train(config, tmp_path, devices=ONE)
    message = str(caught.value)
    assert "step 5, dataset text" in message and "\n" not in message
    assert re.search(
        r"Batch 4 of text: records \d+, .* \(train\), in \S+-train.array_record", message
    )
    assert store.steps(tmp_path)[-1] == 4
    flag = re.search(r"--config.resume.skip_batches=(\S+?)\)", message)[1]
    without = dataclasses.replace(config, resume=ResumeConfig(skip_batches=(flag,)))
    run_lib.train(without, tmp_path, devices=ONE)
    losses = lambda place: [row["loss"] for row in logs.read(place / "metrics.jsonl")]
    assert losses(tmp_path)[:4] == losses(done[0])[:4] and np.isfinite(losses(tmp_path)).all()
    with pytest.raises(ConfigError, match="was made with text:4:5, after 6 batches of text"):
        run_lib.train(config, tmp_path, devices=ONE)


def test_a_run_that_skips_counts_the_update_and_names_its_records(config, tmp_path, bad_batch):
    lines = []
    hooks = dataclasses.replace(config.hooks, on_nonfinite="skip")
    skips = dataclasses.replace(config, hooks=hooks)
    state = run_lib.train(skips, tmp_path, devices=ONE, report=lines.append)
    rows = logs.read(tmp_path / "metrics.jsonl")
    assert [row["skipped"] for row in rows] == [0, 0, 0, 0, 1, 0]
    assert int(state.step) == 6 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.saved())
    )
    (line,) = (line for line in lines if line.startswith("Skipped the update of step 5"))
    assert "Batch 4 of text: records" in line and "1 updates were skipped so far" in line


def test_an_evaluation_is_neither_lost_nor_done_twice(config, tmp_path):
    """A run is killed after the save of its last step, before or after the evaluation."""
    calls, lines = [], tmp_path / "run" / "metrics.jsonl"

    def evaluation(run, tokenizer):
        def measure(params):
            calls.append(1)
            return {"evaluate/x": float(len(calls))}

        return measure

    every = dataclasses.replace(config.evaluate, every=2)
    wanted = dataclasses.replace(config, steps=2, evaluate=every)
    train = lambda: run_lib.train(wanted, lines.parent, evaluation=evaluation, devices=ONE)
    measured = lambda: [row["evaluate/x"] for row in logs.read(lines) if "evaluate/x" in row]
    train()
    assert measured() == [1.0]
    train()
    assert measured() == [1.0] and len(calls) == 1
    rows = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(rows[:-1]))
    assert measured() == []
    train()
    train()
    assert measured() == [2.0] and len(logs.read(lines)) == 3


@pytest.fixture(scope="module")
def towers(world, tmp_path_factory):
    return small.make_towers(tmp_path_factory.mktemp("towers"), world)


@pytest.fixture
def flamingo(world, towers):
    return from_dict(TrainConfig, small.with_world(small.get_config("flamingo"), world, towers))


def with_towers(config, **towers):
    return dataclasses.replace(config, towers=dataclasses.replace(config.towers, **towers))


def test_missing_towers_are_named(flamingo, tmp_path, never_compiles):
    with pytest.raises(ConfigError, match=r"towers\.lm is None.*language_model run"):
        run_lib.train(with_towers(flamingo, lm=None), tmp_path / "run", devices=ONE)
    with pytest.raises(
        CheckpointError, match=r"towers\.vision: There is no export at .*nowhere.*contrastive stage"
    ):
        run_lib.train(
            with_towers(flamingo, vision=str(tmp_path / "nowhere")), tmp_path / "run", devices=ONE
        )


def test_a_tower_of_another_model_is_refused_by_its_fields(flamingo, tmp_path, never_compiles):
    # the same shapes, another model
    lm = dataclasses.replace(flamingo.model.lm, rotary_base=10_000.0)
    changed = dataclasses.replace(flamingo, model=dataclasses.replace(flamingo.model, lm=lm))
    with pytest.raises(
        ConfigError, match=r"another config\.model\.lm.*\n.*rotary_base: 500\.0 -> 10000\.0"
    ):
        run_lib.train(changed, tmp_path, devices=ONE)


@pytest.mark.parametrize("mixing", ["accumulate", "round_robin", "merged"])
def test_batches_follow_the_mixing_from_any_position(flamingo, mixing):
    """Update 3 gets the same batches if the run began at 0 or at 3."""
    config = dataclasses.replace(flamingo, mixing=mixing)
    names, mesh = list(config.data.datasets), make_mesh(config.mesh, ONE)
    tokenizer = SentencePieceTokenizer.load(config.data.tokenizer, config.model.new_tokens)
    mixture = Mixture(config.data, seed=1, tokenizer=tokenizer)

    def from_step(start):
        positions = positions_at(mixing, names, start)
        with contextlib.closing(
            batches(config, mixture, mesh, positions, start, local_shards=1)
        ) as stream:
            return list(itertools.islice(stream, 4 - start))

    whole, resumed = from_step(0), from_step(3)
    without = (f"{name}:1:3" for name in names)
    config = dataclasses.replace(config, resume=ResumeConfig(skip_batches=tuple(without)))
    shorter = from_step(0)
    expected = {"accumulate": ["pages", "pairs"], "round_robin": ["pairs"], "merged": ["merged"]}[
        mixing
    ]
    assert sorted(whole[3]) == sorted(resumed[0]) == expected
    jax.tree.map(np.testing.assert_array_equal, whole[3], resumed[0])
    assert not np.array_equal(*(batch[expected[0]].tokens for batch in (whole[1], whole[3])))
    # The batches 1 and 2 of each dataset are left out.
    uses = {"round_robin": [0, 0, 3, 3]}.get(mixing, [0, 3, 4, 5])
    assert [batches_of_update(config, step, list(shorter[step - 1])) for step in (1, 2, 3, 4)] == [
        dict.fromkeys(names if mixing == "merged" else shorter[step], use)
        for step, use in enumerate(uses)
    ]
    if mixing == "accumulate":
        jax.tree.map(np.testing.assert_array_equal, whole[3], shorter[1])
    if mixing == "merged":
        assert whole[0]["merged"].tokens.shape == (8, 24)
        schema.check(jax.tree.map(np.asarray, whole[0]["merged"]))


def test_the_step_of_the_real_flamingo_has_towers_in_bfloat16_and_masters_in_float32(flamingo):
    """The types of the step before compilation (paper, B.1.2)."""
    config = dataclasses.replace(flamingo, precision=Policy("bfloat16")).resolved(small.VOCABULARY)
    run = run_lib.compile(config, make_mesh(config.mesh, ONE))
    batch = small.batch(rows=2, length=6, images=1, seed=0)
    lowered = run.step.lower(run.layout.abstract, {"pages": batch}, jax.random.key(0))
    state = lowered.in_avals[0][0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.float32]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(state.trainable)])
    after, metrics_after = lowered.out_info
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
        lambda leaf: leaf.dtype, state
    )
    assert metrics_after["loss"].dtype == jnp.float32
    # No matrix product has one operand in float32 and one in bfloat16, as after a missing cast.
    products = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line]
    operands = [line.rsplit(" : ", 1)[1].split(" -> ")[0] for line in products]
    assert any("bf16>" in types for types in operands)
    assert not [types for types in operands if "bf16>" in types and "xf32>" in types]


def test_corrupt_records_are_reported_in_one_line_when_there_are_more():
    rejected, lines = {}, []
    state = TrainState(step=jnp.zeros((), jnp.int32), trainable={}, opt_state=(), frozen={})
    hook = report_rejected(lambda: rejected, lines.append)
    hook(Moment(10, state))
    rejected = {"pairs": {"not_an_image": 1, "broken_text": 12}}
    hook(Moment(20, state))
    hook(Moment(30, state))
    assert lines == [
        "Corrupt records, skipped up to step 20: pairs: broken_text 12, not_an_image 1."
    ]
