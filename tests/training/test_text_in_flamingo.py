"""Text without images among Flamingo's datasets: co-training (Table 10, row vi)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, editable, from_dict
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.schema import check
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.training import datasets_per_step, logs
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.training import small

KEY = jax.random.key(0)
ONE = jax.devices()[:1]
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TEXT = DatasetConfig("text", "text", batch_size=4, length=48, weight=1.0, chunks=2)


def described(**fields):
    """Returns the small Flamingo with pages and text."""
    config = small.get_config("flamingo")
    with config.unlocked():
        del config.data.datasets["pairs"]
        config.data.datasets.text = editable(TEXT)
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="module")
def objective():
    config = from_dict(TrainConfig, described()).resolved(small.VOCABULARY)
    return run_lib.build_objective(config, num_shards=1)


@pytest.fixture(scope="module")
def weights(objective):
    """Random weights, also the gates."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(objective.model.init, KEY)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
    return objective.model.compute_form(jax.tree.map(draw, shapes))


def batch(images):
    """Returns rows of which no token attends an image; the other arrays do not depend on images."""
    made = small.batch(rows=4, length=12, images=images, seed=1)
    return dataclasses.replace(made, media_index=np.zeros_like(made.tokens))


def losses_and_gradients(objective, weights, rows):
    function = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, metrics), found = function.lower(weights, rows, KEY).compile(QUICK)(weights, rows, KEY)
    return float(loss), float(metrics["tokens"]), trees.flatten(jax.device_get(found))


def test_text_has_the_loss_and_gradient_of_rows_that_attend_no_image(objective, weights):
    """1e-5 of the largest entry: another program, whose sums have another order."""
    expected, num, theirs = losses_and_gradients(objective, weights, batch(images=1))
    loss, tokens, found = losses_and_gradients(objective, weights, batch(images=0))
    assert loss == pytest.approx(expected, rel=1e-6) and tokens == num == 4 * 11
    for path, leaf in theirs.items():
        error = 1e-5 * np.abs(leaf).max() + 1e-8
        np.testing.assert_allclose(found[path], leaf, rtol=0, atol=error, err_msg=path)
    trained = {path for path, rule in objective.rules(found).items() if not rule.frozen}
    taught = {path for path in trained if np.any(found[path])}
    layers = {path.removeprefix("flamingo/xattn/block/").split("/")[0] for path in taught}
    assert layers == {"mlp", "mlp_norm", "dense_gate", "flamingo"}
    assert {path.split("/")[1] for path in taught} == {"xattn", "new_tokens"}


def test_text_runs_no_vision_encoder_and_no_cross_attention(objective, weights):
    lowered = lambda rows: jax.jit(objective.loss).lower(weights, rows, KEY).as_text()
    with_image, without = lowered(batch(images=1)), lowered(batch(images=0))
    assert "stablehlo.convolution" in with_image and "stablehlo.convolution" not in without
    assert without.count("stablehlo.dot_general") < with_image.count("stablehlo.dot_general")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    """Co-training: the language model is trained too, with a tenth of the learning rate."""
    towers = small.make_towers(tmp_path_factory.mktemp("towers"), world)
    made = described(steps=4, unfrozen=("lm",))
    made.optimizer.lm.learning_rate = made.optimizer.learning_rate / 10
    return from_dict(TrainConfig, small.with_world(made, world, towers))


def test_a_co_trained_run_counts_its_tokens_and_resumes_to_the_bit(config, tmp_path):
    whole = run_lib.train(config, tmp_path / "whole", devices=ONE)
    run_lib.train(dataclasses.replace(config, steps=2), tmp_path / "parts", devices=ONE)
    parts = run_lib.train(config, tmp_path / "parts", devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, parts.saved(), whole.saved())
    rows = logs.read(tmp_path / "whole" / "metrics.jsonl")
    assert len(rows) == 4
    for row in rows:
        assert 0 < row["text/tokens"] <= 4 * 47 and row["text/loss"] > 0
        both = row["pages/loss"] * config.data.datasets["pages"].weight + row["text/loss"]
        assert row["loss"] == pytest.approx(both, rel=1e-5)
        assert row["learning_rate/lm"] == pytest.approx(row["learning_rate"] / 10)


def test_a_run_on_text_alone_is_refused(config, tmp_path):
    datasets = dict(config.data.datasets)
    datasets["pages"] = dataclasses.replace(datasets["pages"], weight=0.0)
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=datasets))
    with pytest.raises(ConfigError, match="text alone with a weight above 0"):
        run_lib.train(alone, tmp_path, devices=ONE)


def test_merged_with_pages_text_has_no_images(config):
    datasets = {
        name: dataclasses.replace(each, chunks=1) for name, each in config.data.datasets.items()
    }
    data = dataclasses.replace(config.data, datasets=datasets)
    tokenizer = load_tokenizer(config.data.tokenizer, config.model.new_tokens)
    mixture = Mixture(data, seed=0, tokenizer=tokenizer, num_shards=2)
    read = {name: mixture.batch(name, 0) for name in datasets}
    assert read["text"].frames.shape[0] == 0 and read["text"].media_slot.shape == (4, 0)
    merged = datasets_per_step.merge(read, {"pages": 1.0, "text": 0.5}, num_shards=2)
    check(merged, num_shards=2)
    assert merged.tokens.shape == (8, 48)
    is_text = (merged.loss_weights == 0.5).any(axis=1)
    assert is_text.sum() == 4
    assert (merged.media_slot[is_text] == -1).all() and not merged.media_index[is_text].any()


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("flamingo", {"model.xattn.dense": False}, "language model is frozen, and xattn.dense is"),
        (
            "flamingo",
            {"optimizer.lm.learning_rate": 1e-5},
            "optimizer.lm is .* does not train the language model",
        ),
        ("contrastive", {}, "text.kind is 'text'; the contrastive stage takes 'captions'"),
        (
            "contrastive",
            {"towers.lm": "lm/export"},
            "towers.lm is 'lm/export', and the contrastive stage reads no tower",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(stage, fields, message):
    config = described() if stage == "flamingo" else small.get_config(stage)
    with config.unlocked():
        config.data.datasets.text = editable(TEXT)
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message) as error:
        from_dict(TrainConfig, config)
    assert len(str(error.value).splitlines()) == 1
