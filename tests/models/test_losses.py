"""What the loss of a batch is divided by: its tokens, its rows, or nothing."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.data.schema import Batch
from flamingo_jax.models.api import Model
from flamingo_jax.models.losses import Normalisation
from flamingo_jax.training import datasets_per_step, objective
from flamingo_jax.training.config import TrainConfig
from tests.training import small

KEY = jax.random.key(0)
WAYS = typing.get_args(Normalisation)
VOCABULARY = 7


class Unigram(Model):
    """A model of text with a weight for each token: its -log p."""

    def __init__(self):
        pass

    def token_losses(self, params, batch, *, num_shards=1, rng=None):
        return params["lm"]["w"][batch.tokens[:, 1:]]


def text(rows=8, length=6, empty=(2,)):
    """Returns a batch with rows of different lengths, of which some predict nothing."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (rows, length)).astype(np.int32)
    real = rng.integers(2, length + 1, rows)
    real[list(empty)] = 0
    segment = (np.arange(length)[None, :] < real[:, None]).astype(np.int32)
    weights = segment.astype(np.float32)
    weights[:, 0] = 0
    index = np.zeros_like(tokens)
    none = np.zeros((rows, 0), np.int32)
    frames, mask = np.zeros((0, 1, 2, 2, 3), np.uint8), np.zeros((0, 1), bool)
    return Batch(tokens, segment, weights, index, none, frames, mask, np.zeros((0, 2), np.uint32))


BATCH = text()
PARAMS = {"lm": {"w": jnp.arange(1.0, 1 + VOCABULARY)}}


def summed(normalise, number=1, batch=BATCH):
    """Returns (gradient, metrics) of the batch in a number of chunks, times a lambda of 0.5."""
    made = objective.language_model(Unigram(), normalise=normalise)
    chunked = {"text": dataclasses.replace(batch, chunks=number)}
    gradients, metrics = jax.jit(
        lambda params, batches: datasets_per_step.accumulate(
            made.loss, params, batches, {"text": 0.5}, KEY, made.split
        )
    )(PARAMS, chunked)
    return gradients["lm"]["w"], metrics


def test_what_each_way_divides_by():
    """The empty row counts for nothing."""
    targets, weights = BATCH.tokens[:, 1:], BATCH.loss_weights[:, 1:]
    total = float(((1 + targets) * weights).sum())
    assert (weights.sum(axis=1) > 0).sum() == 7
    for normalise, divisor in (("tokens", weights.sum()), ("rows", 7), ("sum", 1)):
        gradient, metrics = summed(normalise)
        assert float(metrics["text/loss"]) == pytest.approx(total / divisor, rel=1e-6), normalise
        assert float(metrics["loss"]) == pytest.approx(0.5 * total / divisor, rel=1e-6)
        assert float(metrics["text/tokens"]) == weights.sum()
        counts = [float((weights * (targets == token)).sum()) for token in range(VOCABULARY)]
        np.testing.assert_allclose(gradient, 0.5 * np.array(counts) / divisor, rtol=1e-6)


def test_a_batch_that_predicts_nothing_has_no_loss():
    for normalise in WAYS:
        gradient, metrics = summed(normalise, batch=text(empty=range(8)))
        assert float(metrics["text/loss"]) == 0.0 and not np.any(gradient)


@pytest.mark.parametrize("normalise", WAYS)
def test_chunks_do_not_change_it(normalise):
    expected, metrics = summed(normalise)
    for number in (2, 4):
        gradient, found = summed(normalise, number)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
        np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-6)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("normalise", WAYS)
def test_parts_of_the_mesh_do_not_change_it(normalise, number):
    """Each slice computes its rows by itself, and divides by what all slices have."""
    made = objective.language_model(
        Unigram(), normalise=normalise, split=datasets_per_step.split_apart
    )
    rows = jax.tree.map(lambda leaf: jnp.stack(jnp.split(leaf, 2)), BATCH)
    rows = dataclasses.replace(rows, chunks=number)

    def of_part(part, key):
        return datasets_per_step.accumulate(
            made.loss, PARAMS, {"text": part}, {"text": 0.5}, key, made.split
        )

    gradients, metrics = jax.vmap(of_part, axis_name="parts")(rows, jax.random.split(KEY, 2))
    expected, whole = summed(normalise)
    np.testing.assert_allclose(gradients["lm"]["w"].sum(axis=0), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].sum(), whole["loss"], rtol=1e-6)


def test_of_rows_without_padding_equation_2_weighs_a_dataset_by_its_tokens():
    """So lambda_m of "tokens" is lambda_m / L of "rows"."""
    batch = dataclasses.replace(BATCH, loss_weights=np.ones_like(BATCH.loss_weights))
    tokens, _ = summed("tokens", batch=batch)
    rows, _ = summed("rows", batch=batch)
    np.testing.assert_allclose(rows, 5 * tokens, rtol=1e-6)


def test_the_contrastive_loss_has_no_choice():
    described = small.get_config("contrastive")
    described.loss.normalise = "rows"
    with pytest.raises(ConfigError, match=r"loss.normalise is 'rows', .* expected .* 'tokens'"):
        from_dict(TrainConfig, described)
    described = small.get_config("flamingo")
    described.loss.normalise = "row"
    with pytest.raises(ConfigError, match="normalise.*'row'"):
        from_dict(TrainConfig, described)
