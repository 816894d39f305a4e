"""The same model in the compute form, and what the backward pass keeps."""

import dataclasses
import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core import trees
from flamingo_jax.core.params import axes_of, param
from flamingo_jax.core.stack import Stack, layer_slice, unrolled
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api, flamingo
from flamingo_jax.models.cache import Media
from flamingo_jax.models.frozen import compute_form_of_blocks
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.training import objective

V, B, L = 20, 2, 8
CHINCHILLA = LMConfig(vocab_size=V, num_layers=3, width=16, num_heads=4, vocab_multiple=8)
TINY_WORLD = dataclasses.replace(
    CHINCHILLA, norm="layer", position="rotary", mlp_bias=False, qkv_conv_width=3
)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, V, (B, L)), jnp.int32)
SEGMENT = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0], [1] * L], jnp.int32)
TEXT = Batch.of_text(TOKENS, SEGMENT)
POSITIONS = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None], (B, L))


def noisy(params):
    """No bias stays 0, no gate shut."""
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params
    )


def assert_close(a, b, *, size=1.0):
    """1e-5 of `size`: float32, sums in another order."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * size), a, b)


def largest(tree):
    """The largest entry of a gradient: an error in one weight's reaches the others'."""
    return max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(tree))


def jit(function):
    """What takes time here is compilation alone."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("config", [CHINCHILLA, TINY_WORLD], ids=["chinchilla", "tiny_world"])
def test_the_fused_language_model_is_the_same_function(config):
    """Trained form against fused form: losses of packed rows, logits with a cache."""
    plain = api.language_model(config)
    fused = api.language_model(dataclasses.replace(config, fused=True))
    params = noisy(jit(plain.init)(jax.random.key(0)))
    blocks = {
        f"lm/blocks/{name}": w
        for name, w in compute_form_of_blocks(config, trees.subtree(params, "lm/blocks")).items()
    }
    changed = {name: w for name, w in params.items() if not name.startswith("lm/blocks")} | blocks
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(changed) == shapes(jax.eval_shape(fused.init, jax.random.key(0)))
    assert (
        "lm/blocks/block/attention/qkv" in changed
        and "lm/blocks/block/attention/query" not in changed
    )

    def run(functions, params):
        cache = functions.empty_cache(B, 12, jnp.float32)
        logits, _ = functions.extend(params, cache, TOKENS, POSITIONS, jnp.zeros_like(TOKENS))
        return functions.token_losses(params, TEXT), logits

    assert_close(
        jit(functools.partial(run, fused))(changed), jit(functools.partial(run, plain))(params)
    )


@pytest.mark.parametrize("field", [{"attention_bias": True}, {"num_kv_heads": 2}])
def test_what_cannot_be_fused_says_so(field):
    config = dataclasses.replace(CHINCHILLA, **field)
    assert not config.can_fuse
    with pytest.raises(ValueError, match="fused"):
        dataclasses.replace(config, fused=True)


FLAMINGO = flamingo.FlamingoConfig(
    vision=NFNetConfig(
        stem_channels=(8,), stem_strides=(2,), widths=(8,), depths=(1,), strides=(2,),
        expansion=1.0, se_ratio=None, final_multiplier=None,
    ),
    resampler=ResamplerConfig(
        num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=3, num_time_embeddings=4
    ),
    lm=CHINCHILLA,
    xattn=XattnConfig(every=2),
)  # fmt: skip
BATCH = Batch(
    tokens=TOKENS.at[:, 3].set(V),
    segment=jnp.ones_like(TOKENS),
    loss_weights=jnp.ones((B, L), jnp.float32),
    media_index=jnp.asarray([[0, 1, 1, 1, 2, 2, 2, 2]] * B, jnp.int32),
    media_slot=jnp.asarray([[0, 1], [2, 0]], jnp.int32),
    frames=jnp.asarray(RNG.integers(0, 256, (3, 1, 16, 16, 3)), jnp.uint8),
    frame_mask=jnp.ones((3, 1), bool),
)


def test_a_flamingo_in_the_compute_form_has_the_same_losses_gradients_and_logits():
    """As a step of training runs: towers changed once, gradients of what is trained."""
    plain, computed = api.flamingo(FLAMINGO), api.flamingo(FLAMINGO, compute_form=True)
    params = noisy(jit(plain.init)(jax.random.key(0)))
    rules = objective.rules_of(objective.FLAMINGO, trees.flatten(params), name="flamingo")
    is_frozen = {path: rule.frozen for path, rule in rules.items()}
    frozen, trained = trees.partition(params, is_frozen)

    def run(functions, frozen):
        def loss(trained):
            return jnp.sum(functions.token_losses(trees.merge(trained, frozen), BATCH))

        whole = trees.merge(trained, frozen)
        pool = functions.encode(whole, BATCH.frames, BATCH.frame_mask)
        cache = functions.empty_cache(B, 12, jnp.float32)
        media = Media(pool, BATCH.media_slot)
        logits, _ = functions.extend(
            whole, cache, BATCH.tokens, POSITIONS, BATCH.media_index, media
        )
        return jax.value_and_grad(loss)(trained), logits

    made = jit(computed.compute_form)(frozen)
    assert "flamingo/lm/blocks/block/attention/qkv" in made
    (loss, gradient), logits = jit(functools.partial(run, computed))(made)
    (expected_loss, expected), expected_logits = jit(functools.partial(run, plain))(frozen)
    assert_close((loss, logits), (expected_loss, expected_logits))
    assert_close(gradient, expected, size=largest(expected))


@pytest.mark.parametrize("offset", [0, 1])
def test_a_language_model_that_is_trained_has_the_gradients_of_the_stored_form(offset):
    """With an incomplete group of blocks, or blocks before the first layer."""
    config = dataclasses.replace(FLAMINGO, xattn=XattnConfig(every=2, offset=offset))
    plain = api.flamingo(config)
    computed = api.flamingo(config, compute_form=True, unfrozen=("lm", "vision"))
    params = noisy(jit(plain.init)(jax.random.key(0)))
    changed = computed.compute_form(params)
    assert trees.flatten(changed).keys() == trees.flatten(params).keys()
    loss = lambda functions: lambda params: jnp.sum(functions.token_losses(params, BATCH))
    expected = jit(jax.value_and_grad(loss(plain)))(params)
    got = jit(jax.value_and_grad(loss(computed)))(changed)
    assert_close(got[0], expected[0])
    lm = lambda gradient: trees.under(gradient, "flamingo/lm")
    assert min(map(largest, trees.flatten(lm(expected[1])).values())) > 0
    assert_close(lm(got[1]), lm(expected[1]), size=largest(lm(expected[1])))


def test_a_language_model_that_cannot_be_fused_stays_as_it_is():
    config = dataclasses.replace(FLAMINGO, lm=dataclasses.replace(CHINCHILLA, attention_bias=True))
    computed = api.flamingo(config, compute_form=True)
    kept = jax.eval_shape(computed.init, jax.random.key(0))
    made = jax.eval_shape(computed.compute_form, kept)
    lm = {module for module in kept if module.startswith("flamingo/lm")}
    assert {module: made[module] for module in lm} == {module: kept[module] for module in lm}
    assert "flamingo/lm/blocks/block/attention/query" in lm


def test_weights_in_the_compute_form_have_names_shapes_and_axes():
    """As `compute_form` makes them from what a checkpoint keeps."""
    computed = api.flamingo(FLAMINGO, compute_form=True)
    key = jax.random.key(0)
    kept = jax.eval_shape(computed.init, key)
    made = trees.flatten(jax.eval_shape(computed.compute_form, kept))
    named = trees.flatten(jax.eval_shape(computed.compute_form_init, key))
    assert {path: leaf.shape for path, leaf in made.items()} == {
        path: leaf.shape for path, leaf in named.items()
    }
    assert axes_of(computed.compute_form_init, key).keys() == made.keys()
    plain = api.flamingo(FLAMINGO)
    assert plain.compute_form_init is not None or plain.compute_form(kept) is kept
    assert trees.flatten(kept).keys() == axes_of(plain.init, key).keys() != made.keys()


class Layer(hk.Module):
    def __call__(self, x):
        w = param("w", (4, 4), ("embed", "mlp"), hk.initializers.RandomNormal())
        hidden = checkpoint_name(x @ w.astype(x.dtype), "mlp_hidden")
        return jnp.tanh(jnp.sin(hidden))


def run_by_number(x, remat):
    """Three layers that take their weights from the stack by number, shifted by an input.

    Returns the results of a scan by number, of one body, and of a scan over the weights.
    """
    stack = Stack(
        3,
        lambda x, shift: (Layer(name="layer")(x) + shift.astype(x.dtype), None),
        name="stack",
        remat=remat,
    )
    shifts = jnp.arange(3.0)
    weights = stack.weights(x, layer_slice(shifts, 0))
    own = (stack.numbers(weights), shifts, {})
    by_number = stack.scan_of(weights, x, own)[0]
    return by_number, stack.body_of(weights, x, own), stack.scan(x, weights, shifts)[0]


BY_NUMBER = hk.transform(run_by_number)


@pytest.mark.parametrize("remat", ["none", "projections", "full"])
def test_a_layer_by_its_number_is_the_layer_of_the_scan(remat):
    x = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
    params = BY_NUMBER.init(jax.random.key(0), x, remat)
    by_number, body, scanned = BY_NUMBER.apply(params, None, x, remat)
    np.testing.assert_array_equal(by_number, scanned)
    np.testing.assert_array_equal(body, scanned)
    gradient = lambda which: jax.grad(
        lambda x: jnp.sum(BY_NUMBER.apply(params, None, x, remat)[which])
    )(x)
    np.testing.assert_allclose(gradient(0), gradient(2), rtol=1e-6)
    np.testing.assert_allclose(gradient(1), gradient(2), rtol=1e-6)


def kept_by(function, *args):
    """Shapes of what the backward pass of a function keeps, its arguments included."""
    backward = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return [leaf.shape for leaf in jax.tree.leaves(backward)]


@pytest.mark.parametrize(("remat", "slices"), [("none", 1), ("projections", 0), ("full", 0)])
def test_a_slice_of_frozen_weights_is_never_kept(remat, slices):
    """Kept for each step of a scan, they would be all of the weights once more."""
    x = jnp.ones((2, 4))
    params = BY_NUMBER.init(jax.random.key(0), x, remat)
    stacked = params["stack/layer"]["w"]
    stack = Stack(3, lambda x, _: (Layer(name="layer")(x), None), name="stack", remat=remat)
    own = lambda x: stack.layer_of({"layer": {"w": stacked}}, 1, x)[0]
    assert kept_by(own, x).count((4, 4)) == slices
    body = lambda x: stack.body_of({"layer": {"w": stacked}}, x, (jnp.arange(3), None, {}))
    assert kept_by(body, x).count((4, 4)) == 3 * slices
    apart = unrolled({"layer": {"w": stacked}})
    separate = stack.body_of(apart, x, (stack.numbers(apart), None, {}))
    np.testing.assert_array_equal(separate, body(x))


def test_remat_keeps_less_and_changes_no_gradient():
    """In numbers that the backward pass of the language model keeps: none > projections > full."""
    models = {
        remat: api.language_model(dataclasses.replace(CHINCHILLA, remat=remat))
        for remat in ("none", "projections", "full")
    }
    params = noisy(jit(models["none"].init)(jax.random.key(0)))
    losses = {
        remat: lambda p, functions=functions: jnp.sum(functions.token_losses(p, TEXT))
        for remat, functions in models.items()
    }
    none, some, full = (sum(map(math.prod, kept_by(loss, params))) for loss in losses.values())
    assert none > some > full
    expected = jit(jax.grad(losses["none"]))(params)
    assert_close(jit(jax.grad(losses["projections"]))(params), expected, size=largest(expected))
