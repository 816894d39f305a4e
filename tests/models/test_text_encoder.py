"""BERT against an independent numpy reference; padding, length."""

import dataclasses
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.precision import Policy
from flamingo_jax.models.text_encoder import TextEncoder, TextEncoderConfig

CONFIG = TextEncoderConfig(
    vocab_size=11, num_layers=2, width=8, num_heads=2, max_length=6, token_types=2, vocab_multiple=4
)
TOKENS = jnp.array([[3, 10, 1, 0, 0], [4, 4, 9, 2, 7]])
SEGMENT = (TOKENS > 0).astype(jnp.int32)


def _network(config=CONFIG):
    return hk.without_apply_rng(
        hk.transform(lambda tokens, segment: TextEncoder(config)(tokens, segment))
    )


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(_network().init, jax.random.key(0), TOKENS, SEGMENT)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.2, 0.5, size=leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def apply():
    return jax.jit(_network().apply)


def test_parity_with_numpy(params, apply):
    """Tolerance 1e-5: values of order 1 after a LayerNorm, float32 against float64."""
    weights = {
        path.removeprefix("text/"): np.asarray(leaf, np.float64)
        for path, leaf in trees.flatten(params).items()
    }
    gelu = np.vectorize(lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))))

    def norm(x, w, name):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[
            f"{name}/scale"
        ] + w[f"{name}/offset"]

    got = apply(params, TOKENS, SEGMENT)
    for row, num_real in enumerate((3, 5)):
        tokens = TOKENS[row, :num_real]  # padding does not exist at all here
        x = weights["embedding"][tokens] + weights["positions"][:num_real] + weights["types"][0]
        x = norm(x, weights, "embedding_norm")
        for layer in range(2):
            w = {
                path.removeprefix("layers/"): leaf[layer]
                for path, leaf in weights.items()
                if path.startswith("layers/")
            }
            out = np.zeros_like(x)
            for h in range(2):
                q, k, v = (
                    x @ w[f"{name}/w"][:, h] + w[f"{name}/b"][h]
                    for name in ("query", "key", "value")
                )
                scores = np.exp(q @ k.T / math.sqrt(4))
                out += scores / scores.sum(-1, keepdims=True) @ v @ w["output/w"][h]
            x = norm(x + out + w["output/b"], w, "attention_norm")
            x = norm(
                x + gelu(x @ w["ffw/up/w"] + w["ffw/up/b"]) @ w["ffw/down/w"] + w["ffw/down/b"],
                w,
                "ffw_norm",
            )
        np.testing.assert_allclose(got[row, :num_real], x, atol=1e-5)


def test_padding_has_no_influence_and_later_tokens_have(params, apply):
    before = apply(params, TOKENS, SEGMENT)
    padded = apply(params, TOKENS.at[0, 3:].set(5), SEGMENT)
    np.testing.assert_array_equal(padded[0, :3], before[0, :3])
    later = apply(params, TOKENS.at[1, 4].set(8), SEGMENT)
    assert np.abs(later[1, 0] - before[1, 0]).max() > 1e-3


def test_bfloat16_is_close_to_float32(params, apply):
    """Tolerance 0.1 on values of order 1: two post-norm layers with 8 bits of mantissa."""
    low = apply(Policy("bfloat16").cast(params), TOKENS, SEGMENT)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), apply(params, TOKENS, SEGMENT), atol=0.1)


def test_vocabulary_is_padded(params):
    assert params["text"]["embedding"].shape == (12, 8)


def test_too_long_a_text_is_an_error():
    tokens = jnp.zeros((1, 7), jnp.int32)
    with pytest.raises(ValueError, match="'text' got 7 tokens, expected at most max_length=6"):
        jax.eval_shape(_network().init, jax.random.key(0), tokens, tokens)


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(ValueError, match="3 heads do not divide width 8"):
        dataclasses.replace(CONFIG, num_heads=3)
