"""Every row of Tables 3 and 10 trains, goes on, is exported, evaluated and asked, at a tiny size.

The rows are those of configs/ablations/flamingo_3b.py. What has a size there has a small one here.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs.ablations import flamingo_3b
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core.config import editable, from_dict
from flamingo_jax.evaluation import registry
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import evaluate
from flamingo_jax.inference.model import Flamingo, InferenceConfig
from flamingo_jax.models import sizes
from flamingo_jax.training import logs
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TowersConfig, TrainConfig
from tests.inference import tiny
from tests.training import small

ONE = jax.devices()[:1]
SMALL = {
    ("model.xattn.every", 24): 2,
    ("model.xattn.offset", 12): 1,
    ("model.xattn.grafted_layers", 12): 1,
    ("model.resampler.num_layers", 10): 1,
    ("model.resampler.width", 1024): 8,
    ("model.resampler.num_heads", 8): 2,
    ("model.resampler.width", 2048): 32,
    ("model.resampler.num_layers", 7): 2,
    ("data.image_size", 224): small.SIZE,
}
DATASETS = {"m3w": "pages", "align": "pairs", "ltip": "pairs"}
# In the default suite; each row compiles its own update, prefill, decoding and scoring.
QUICK = ("grafting",)
# The same programs as the base's, on other data or with other towers.
OTHER_DATA = ("base", "m3w_only", "no_vtp", "no_pairs", "laion", "no_m3w", "p_next_0", "p_next_1")
OTHER_DATA += ("lm_c4",)
LIKE_CLIP = ("laion_clip", "m3w_laion_vtp_clip")
INFERENCE = InferenceConfig(
    lengths=(64,), num_images=(3,), images_per_pass=4, max_new_tokens=2, compute="float32"
)


def config_of(row, stage="flamingo"):
    """Returns the small config with the change of a row."""
    config = small.get_config(stage)
    if row in flamingo_3b.CLIP:
        config.model.vision, config.model.vit = None, editable(sizes.VITS["tiny"])
    if row == "nfnet_f0":
        config.model.vision.widths = (8,)
    if stage != "flamingo":
        return config
    if row == "mlp":
        config.model.resampler.num_latents = 4  # a square
    changes = {field: SMALL.get((field, to), to) for field, to in flamingo_3b.ROWS[row].items()}
    config.update_from_flattened_dict(
        {field.replace(".m3w.", ".pages."): to for field, to in changes.items()}
    )
    with config.data.datasets.unlocked():
        for name in {DATASETS.get(each) for each in flamingo_3b.LEFT_OUT.get(row, ())} - {None}:
            del config.data.datasets[name]
    if row not in OTHER_DATA and config.mixing != "round_robin":
        with config.data.datasets.unlocked():
            del config.data.datasets["pairs"]  # a second program for the same layers
    if row.startswith("text_"):
        with config.data.datasets.unlocked():
            config.data.datasets.text = small.get_config("language_model").data.datasets.text
    config.steps, config.layers = 1, "scanned"
    config.optimizer.warmup_steps = (
        0  # the first update opens the gates, the second trains the rest
    )
    return config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def towers(world, tmp_path_factory):
    """Makes the towers of a row; rows with the same ones share them."""
    made = {}

    def of(row):
        kind = "clip" if row in flamingo_3b.CLIP else "base"
        kind = row if row == "nfnet_f0" else kind
        if kind not in made:
            made[kind] = small.make_towers(
                tmp_path_factory.mktemp(kind), world, lambda stage: config_of(kind, stage)
            )
        return made[kind]

    return of


def read(row, world, towers):
    described = small.with_world(config_of(row), world, towers(row))
    described.towers.update(dict.fromkeys(flamingo_3b.ROWS[row].get("towers.random", ())))
    return from_dict(TrainConfig, described)


@pytest.mark.parametrize("row", OTHER_DATA)
def test_rows_with_other_data_have_the_programs_of_the_base(row, world, towers):
    base, own = (read(name, world, towers) for name in ("base", row))
    assert (own.model, own.mixing, own.unfrozen) == (base.model, base.mixing, base.unfrozen)
    assert set(own.data.datasets) <= set(base.data.datasets)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if row in QUICK else pytest.mark.slow)
        for row in flamingo_3b.ROWS
        if row not in (*OTHER_DATA[1:], *LIKE_CLIP)
    ],
)
def test_a_row_from_training_to_answers(row, world, towers, tmp_path):
    config = read(row, world, towers)
    run_lib.train(config, tmp_path, devices=ONE)
    before = open_checkpoint(tmp_path / "export")
    run_lib.train(dataclasses.replace(config, steps=2), tmp_path, devices=ONE)
    rows = logs.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in rows] == [1, 2]
    assert np.isfinite([line["loss"] for line in rows]).all()
    if row.startswith("text_"):
        assert all(line["text/tokens"] > 0 and line["pages/tokens"] > 0 for line in rows)
    after = open_checkpoint(tmp_path / "export")
    same = jax.tree.map(np.array_equal, before.params, after.params)
    moved = {module.split("/")[1] for module, own in same.items() if not all(own.values())}
    trained = {"resampler", "media", "xattn", "new_tokens", *config.unfrozen}
    assert moved == trained | ({"grafted"} if row == "grafting" else set())
    card = json.loads((tmp_path / "export" / "model.json").read_text())
    for field, value in flamingo_3b.ROWS[row].items():
        part, *names = field.split(".")
        if part == "model":
            assert card["config"][names[0]][names[1]] == SMALL.get((field, value), value)

    model = Flamingo.load(tmp_path, config=INFERENCE)
    task = registry.create("bind2", {"world": str(world)}, Protocol(shots=(2,), n=2))
    results, answers = evaluate(model, task, shots=2)
    assert {result.metric for result in results} == {"exact_match", "ranking"}
    assert len(answers) == 2
    prompt = [tiny.image(1, small.SIZE), "this is a<EOC>", tiny.image(2, small.SIZE), "this is a"]
    prompts = [prompt, [tiny.image(3, small.SIZE), *prompt[1:]]]
    assert all(isinstance(text, str) for text in model.generate(prompts))
    scores = model.score(prompts, (" red", " blue"))
    assert np.isfinite(scores).all() and scores[0] != scores[1]

    # Fine-tuning starts with all of the export's weights: an update of Adam is small.
    tuned = dataclasses.replace(config, initial=str(tmp_path / "export"), towers=TowersConfig())
    run_lib.train(tuned, tmp_path / "tuned", devices=ONE)
    end = open_checkpoint(tmp_path / "tuned" / "export").params
    most = 2 * config.optimizer.learning_rate
    jax.tree.map(
        lambda old, new: np.testing.assert_allclose(new, old, atol=most), after.params, end
    )
    same = jax.tree.map(np.array_equal, after.params, end)
    assert {module.split("/")[1] for module, own in same.items() if not all(own.values())} == moved
