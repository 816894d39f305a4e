"""Towers in 8 bits: which weights, and what the logits lose against bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.params import axes_of
from flamingo_jax.core.precision import Policy, is_int8
from flamingo_jax.core.stack import unrolled_weights
from flamingo_jax.models import api, int8
from flamingo_jax.models.cache import Media
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.vit import ViTConfig
from tests.models.test_frozen import (
    BATCH,
    FLAMINGO,
    POSITIONS,
    TOKENS,
    B,
    L,
    V,
    jit,
    noisy,
)

LLAMA = LMConfig(
    vocab_size=20, num_layers=2, width=32, num_heads=4, num_kv_heads=2, position="rotary",
    activation="swiglu", mlp_bias=False, tied_head=False, vocab_multiple=8,
)  # fmt: skip
MPT = LMConfig(
    vocab_size=20, num_layers=2, width=32, num_heads=4, position="alibi", norm="layer",
    norm_bias=False, mlp_bias=False, qk_norm=True, vocab_multiple=8,
)  # fmt: skip
VIT = ViTConfig(patch_size=8, width=16, num_layers=2, num_heads=2, mlp_width=32, image_size=16)
NFNET = dataclasses.replace(FLAMINGO.vision, se_ratio=0.5, final_multiplier=2.0)
FLAMINGOS = {
    "chinchilla and nfnet": dataclasses.replace(FLAMINGO, vision=NFNET),
    "llama and clip": dataclasses.replace(FLAMINGO, vision=VIT, lm=LLAMA),
}
INT8 = Policy("bfloat16", "int8")


def rounded_paths(params):
    return {path for path, leaf in trees.flatten(params).items() if is_int8(leaf)}


def test_which_weights_of_a_flamingo_are_in_8_bits():
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = {}
    for name, config in FLAMINGOS.items():
        model = api.flamingo(config)
        rounded = jax.eval_shape(lambda k, m=model: int8.cast(m.init, m.init(k), INT8), key)
        found[name] = rounded_paths(rounded)
    block = "flamingo/lm/blocks/block"
    attention = {f"{block}/attention/{part}/w" for part in ("query", "key", "value", "out")}
    first = "flamingo/vision/stage0/first"
    assert found["chinchilla and nfnet"] == attention | {
        f"{block}/attention/relative/w",
        *(f"{block}/mlp/{part}/w" for part in ("up", "down")),
        "flamingo/lm/embedding",
        *(f"{first}/{part}/w" for part in ("conv0", "conv2", "shortcut", "squeeze", "excite")),
        "flamingo/vision/final_conv/w",
    }
    layer = "flamingo/vision/layers/block"
    assert found["llama and clip"] == attention | {
        *(f"{block}/mlp/{part}/w" for part in ("up", "gate", "down")),
        "flamingo/lm/embedding",
        "flamingo/lm/head",
        *(f"{layer}/attention/{part}/w" for part in ("query", "key", "value", "out")),
        *(f"{layer}/mlp/{part}/w" for part in ("up", "down")),
    }


def flamingo_logits(model, params):
    """Logits of a sequence with images, through the encoder and a cache with distances."""
    params = model.compute_form(params)
    pool = model.encode(params, BATCH.frames, BATCH.frame_mask)
    cache = model.empty_cache(B, 12, pool.dtype, params)
    media = Media(pool, BATCH.media_slot)
    tokens, phi = BATCH.tokens, BATCH.media_index
    return model.extend(params, cache, tokens, POSITIONS, phi, media)[0]


def assert_close_to_bfloat16(logits):
    """Within 3% of the deviation of the logits on average, and 15% at most.

    Args:
        logits: of bfloat16 weights, and of those in 8 bits.
    """
    low, rounded = (np.asarray(each, np.float32)[..., :V] for each in logits)
    difference = np.abs(rounded - low) / np.std(low)
    assert 0 < difference.mean() < 0.03 and difference.max() < 0.15


@pytest.mark.parametrize("name", FLAMINGOS)
def test_logits_of_a_flamingo_are_close_to_those_in_bfloat16(name):
    stored = api.flamingo(FLAMINGOS[name])
    model = api.flamingo(FLAMINGOS[name], compute_form=True)

    @jit
    def run(key):
        params = noisy(stored.init(key))
        cast = (Policy("bfloat16").cast(params), int8.cast(stored.init, params, INT8))
        return [flamingo_logits(model, each) for each in cast]

    assert_close_to_bfloat16(run(jax.random.key(0)))


def test_a_language_model_in_8_bits_scanned_and_unrolled():
    """The scan is close to bfloat16, and layers one by one are the scan."""
    model, key = api.language_model(MPT), jax.random.key(0)
    axes = axes_of(model.init, key)

    @jit
    def run(key):
        params = noisy(model.init(key))
        rounded = int8.cast(model.init, params, INT8)
        apart = unrolled_weights(rounded, axes)

        def logits(params):
            cache = model.empty_cache(B, L, jnp.bfloat16)
            cache = cache.unrolled() if params is apart else cache
            return model.extend(params, cache, TOKENS, POSITIONS, jnp.zeros_like(TOKENS))[0]

        return [logits(each) for each in (Policy("bfloat16").cast(params), rounded, apart)]

    low, rounded, one_by_one = run(key)
    assert_close_to_bfloat16((low, rounded))
    np.testing.assert_allclose(rounded[..., :V], one_by_one[..., :V], rtol=1e-5, atol=1e-5)
