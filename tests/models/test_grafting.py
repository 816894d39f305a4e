"""Grafting: a trained stack on top of the LM, which runs as it is (Table 3, row iv)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion.export_open_flamingo import check
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core import trees
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.params import axes_of
from flamingo_jax.core.stack import unrolled_weights
from flamingo_jax.models import api
from flamingo_jax.models.cache import GRAFTED, Media
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.sizes import VITS
from flamingo_jax.training.objective import FLAMINGO, rules_of
from tests.models import test_flamingo as whole
from tests.models.test_flamingo import BATCH, PHI, POSITIONS, B, L, quick_jit

# Relative positions have a table in the cache, and the convolution has rows of its own there.
LM = dataclasses.replace(whole.CONFIG.lm, num_layers=3, position="relative")
CONFIG = dataclasses.replace(whole.CONFIG, lm=LM, xattn=XattnConfig(grafted_layers=2))
MODEL = api.flamingo(CONFIG, compute_form=True)


@functools.cache
def weights():
    """Random weights with open gates; NumPy draws them, so nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes
    )


def visuals(params, batch):
    return Media(MODEL.encode(params, batch.frames, batch.frame_mask), batch.media_slot)


@functools.cache
def prefill(chunk=None):
    """Jitted: (weights in the stored form, batch, phi) -> (logits, cache) of whole rows."""

    def run(params, batch, phi):
        params = MODEL.compute_form(params)
        cache = MODEL.empty_cache(B, 16, jnp.float32, params)
        media = visuals(params, batch)
        return MODEL.extend(params, cache, batch.tokens, POSITIONS, phi, media, chunk)

    return quick_jit(run)


def test_cached_decoding_and_the_chunked_form_equal_the_uncached_forward():
    """Training, prefill, chunks of 4 tokens, and token by token (float32: 1e-5)."""
    logits, _ = prefill()(weights(), BATCH, PHI)
    losses = quick_jit(lambda params: MODEL.token_losses(MODEL.compute_form(params), BATCH))
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits[:, :-1]), BATCH.tokens[:, 1:, None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(losses(weights()), -picked, rtol=1e-5, atol=1e-5)
    chunked, _ = prefill((4, 3))(weights(), BATCH, PHI)
    np.testing.assert_allclose(chunked, logits, rtol=1e-5, atol=1e-5)
    _, cache = prefill()(weights(), BATCH, jnp.where(POSITIONS < 10, PHI, 0))
    step = quick_jit(lambda params, *args: MODEL.extend(MODEL.compute_form(params), *args))
    for t in range(10, L):  # the rows 10 and 11 of the cache are overwritten
        own = slice(t, t + 1)
        found, cache = step(weights(), cache, BATCH.tokens[:, own], POSITIONS[:, own], PHI[:, own])
        np.testing.assert_allclose(found[:, 0], logits[:, t], rtol=1e-5, atol=1e-5)


def test_unrolled_layers_and_a_cached_prefix_are_the_same_model():
    """Row 0 is read in two parts, of which the first is taken for two sequences (1e-5: float32)."""
    expected, _ = prefill()(weights(), BATCH, PHI)
    axes = axes_of(MODEL.compute_form_init, jax.random.key(0))

    @quick_jit
    def run(params):
        params = MODEL.compute_form(params)
        media = visuals(params, BATCH)
        params = unrolled_weights(params, axes)
        empty = lambda: MODEL.empty_cache(B, 16, jnp.float32, params).unrolled()
        first = lambda leaf: leaf[:, :9]
        args = (BATCH.tokens, POSITIONS, PHI)
        logits, cache = MODEL.extend(params, empty(), *map(first, args), media)
        prefix = cache.first_tokens(9, 1)
        cache = empty().with_prefix(prefix)
        rest = (jnp.stack([leaf[0, 9:]] * B) for leaf in args)
        slot = jnp.stack([BATCH.media_slot[0]] * B)
        return logits, MODEL.extend(params, cache, *rest, Media(media.pool, slot))[0]

    before, after = run(weights())
    np.testing.assert_allclose(before, expected[:, :9], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after[1], expected[0, 9:], rtol=1e-5, atol=1e-5)


def test_the_language_model_runs_as_it_is():
    """Its keys and values are those of the LM alone, to the bit, whatever the images show."""
    other = dataclasses.replace(BATCH, frames=255 - BATCH.frames)
    caches = [prefill()(weights(), batch, PHI)[1].lm for batch in (BATCH, other)]
    same = {
        name: np.array_equal(*(np.asarray(cache[name]) for cache in caches)) for name in caches[0]
    }
    assert same == {
        name: not name.startswith(GRAFTED)
        for name in ("key", "value", "raw", "grafted_key", "grafted_value", "grafted_raw")
    }
    logits = [prefill()(weights(), batch, PHI)[0] for batch in (BATCH, other)]
    changed = np.any(np.asarray(logits[0] != logits[1]), axis=-1)
    np.testing.assert_array_equal(changed, PHI > 0)


def test_a_stack_that_adds_nothing_leaves_the_logits_of_the_language_model():
    """Its input is the LM's residual stream, its output goes to the LM's head (float32: 1e-5)."""
    silent = trees.unflatten(
        {
            path: jnp.zeros_like(leaf)
            if path.endswith("_gate") or path.startswith("flamingo/grafted/")
            else leaf
            for path, leaf in trees.flatten(weights()).items()
        }
    )
    lm = api.language_model(LM)
    alone = {
        module.removeprefix("flamingo/"): leaves
        for module, leaves in silent.items()
        if module.startswith("flamingo/lm")
    }
    tokens = jnp.minimum(BATCH.tokens, whole.V - 1)
    expected, _ = quick_jit(lm.extend)(
        alone, lm.empty_cache(B, 16, jnp.float32), tokens, POSITIONS, PHI
    )
    logits, _ = prefill()(silent, dataclasses.replace(BATCH, tokens=tokens), PHI)
    np.testing.assert_allclose(logits[..., : whole.V], expected, rtol=1e-5, atol=1e-5)


def test_its_blocks_are_trained_and_have_the_names_and_axes_of_the_language_models():
    init = api.flamingo(CONFIG).init
    axes = axes_of(init, jax.random.key(0))
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0)))
    rules = rules_of(FLAMINGO, shapes, name="flamingo")
    own = {path: path.split("/", 2)[2] for path in shapes if path.startswith("flamingo/grafted/")}
    theirs = {path.split("/", 3)[3] for path in shapes if path.startswith("flamingo/lm/blocks/")}
    assert set(own.values()) == theirs
    for path, name in own.items():
        lm = f"flamingo/lm/blocks/{name}"
        assert axes[path] == axes[lm] and shapes[path].shape == (2, *shapes[lm].shape[1:])
        assert not rules[path].frozen and rules[path].decay == 1.0 and rules[lm].frozen
    assert shapes["flamingo/xattn/block/query/w"].shape[0] == 2


@pytest.mark.parametrize("places", [{"every": 2}, {"every": 3, "offset": 1}])
def test_places_between_the_blocks_exclude_it(places):
    with pytest.raises(FieldError, match=r"grafted_layers is 2, every is .* Expected every = 1"):
        XattnConfig(grafted_layers=2, **places)


def test_open_flamingo_cannot_hold_it():
    model = ModelConfig(vit=VITS["tiny"], resampler=CONFIG.resampler, lm=LM, xattn=CONFIG.xattn)
    with pytest.raises(ConversionError, match=r"xattn.grafted_layers = 2 \(theirs: 0\)"):
        check(model)
