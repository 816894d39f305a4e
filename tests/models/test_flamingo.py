"""The whole model as the paper describes it.

It starts as its language model, and each token attends one image.
"""

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.params import axes_of
from flamingo_jax.core.stack import unrolled_weights
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api, flamingo
from flamingo_jax.models.cache import Media
from flamingo_jax.models.gated_xattn import GatedXattn, XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.media_context import MediaContext, gather_media
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.sizes import FLAMINGOS
from flamingo_jax.nn.norm import standardise
from flamingo_jax.training.objective import FLAMINGO, rules_of

V, B, L, N = 20, 2, 12, 3
CONFIG = flamingo.FlamingoConfig(
    vision=NFNetConfig(
        stem_channels=(8,), stem_strides=(2,), widths=(8,), depths=(1,), strides=(2,),
        expansion=1.0, se_ratio=None, final_multiplier=None,
    ),
    resampler=ResamplerConfig(
        num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=3, num_time_embeddings=4
    ),
    lm=LMConfig(
        vocab_size=V, num_layers=5, width=16, num_heads=2, position="rotary", vocab_multiple=8,
        qkv_conv_width=3, sliding_window=6, global_every=2,
    ),
    xattn=XattnConfig(every=1),
    new_tokens=("<EOC>", "<image>"),
)  # fmt: skip
PLACES = {"every_block": (1, 0), "every_second": (2, 0), "from_the_last_of_three": (3, 2)}

RNG = np.random.default_rng(0)
TEXT = jnp.asarray(RNG.integers(0, V, (B, L)), jnp.int32)
PHI = jnp.asarray(
    [[0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]], jnp.int32
)
BATCH = Batch(
    tokens=jnp.asarray(RNG.integers(0, V + 2, (B, L)), jnp.int32),
    segment=jnp.ones((B, L), jnp.int32),
    loss_weights=jnp.ones((B, L), jnp.float32),
    media_index=PHI,
    media_slot=jnp.asarray([[0, 1, 2], [3, 4, -1]], jnp.int32),
    frames=jnp.asarray(RNG.integers(0, 256, (6, 2, 16, 16, 3)), jnp.uint8),
    frame_mask=jnp.asarray([[True, True]] * 3 + [[True, False]] * 3),
)
POSITIONS = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None], (B, L))


# For what is compared within a tolerance: most of the time here is compilation.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def model(place="every_block"):
    every, offset = PLACES[place]
    return api.flamingo(dataclasses.replace(CONFIG, xattn=XattnConfig(every=every, offset=offset)))


@functools.cache
def initial_weights(place):
    return quick_jit(model(place).init)(jax.random.key(0))


@functools.cache
def weights(place="every_block", *, gates=0.5):
    params = trees.flatten(initial_weights(place))
    return trees.unflatten({k: v + gates if k.endswith("_gate") else v for k, v in params.items()})


@functools.cache
def prefill(place="every_block", *, chunk=None):
    """Jitted: (weights, batch, tokens) -> (logits, cache) of whole rows."""
    functions = model(place)

    def run(params, batch, tokens):
        pool = functions.encode(params, batch.frames, batch.frame_mask)
        cache = functions.empty_cache(B, 16, pool.dtype)
        return functions.extend(
            params,
            cache,
            tokens,
            POSITIONS,
            batch.media_index,
            Media(pool, batch.media_slot),
            chunk,
        )

    # The other programs are compared bit for bit.
    is_exact = chunk is None and place != "from_the_last_of_three"
    return jax.jit(run) if is_exact else quick_jit(run)


@pytest.mark.parametrize(
    ("place", "dtype"),
    [("every_block", "float32"), ("every_block", "bfloat16"), ("every_second", "float32")],
)
def test_with_closed_gates_the_logits_are_the_language_models_bit_for_bit(place, dtype):
    """Paper, 2.2: at initialisation the model is the LM.

    bfloat16 with xla_allow_excess_precision=false (conftest).
    """
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), weights(place, gates=0.0))
    lm = api.language_model(CONFIG.lm)
    alone = {
        module.removeprefix("flamingo/"): leaf
        for module, leaf in params.items()
        if module.startswith("flamingo/lm")
    }
    expected, _ = jax.jit(lm.extend)(alone, lm.empty_cache(B, 16, dtype), TEXT, POSITIONS, PHI)
    logits, _ = prefill(place)(params, BATCH, TEXT)
    np.testing.assert_array_equal(np.asarray(logits[..., :V]), np.asarray(expected))
    opened, _ = prefill(place)(
        jax.tree.map(lambda leaf: leaf.astype(dtype), weights(place)), BATCH, TEXT
    )
    assert np.any(np.asarray(opened[..., :V]) != np.asarray(expected))


@pytest.mark.parametrize("place", PLACES)
def test_cached_decoding_equals_the_uncached_forward(place):
    """Prefill up to the last image, then token by token with that image's keys (float32: 1e-5)."""
    whole, _ = prefill(place)(weights(place), BATCH, BATCH.tokens)
    losses = quick_jit(model(place).token_losses)(weights(place), BATCH)
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(whole[:, :-1]), BATCH.tokens[:, 1:, None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(losses, -picked, rtol=1e-5, atol=1e-5)
    start = dataclasses.replace(BATCH, media_index=jnp.where(POSITIONS < 10, PHI, 0))
    _, cache = prefill(place)(weights(place), start, BATCH.tokens)  # rows 10, 11 are overwritten
    step = quick_jit(model(place).extend)
    for t in range(10, L):
        logits, cache = step(
            weights(place),
            cache,
            BATCH.tokens[:, t : t + 1],
            POSITIONS[:, t : t + 1],
            PHI[:, t : t + 1],
        )
        np.testing.assert_allclose(logits[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)


def test_decoding_copies_no_weights_out_of_a_stack():
    """With 5 blocks and a cross-attention layer before each second, the last group is a half."""
    place, axes = "every_second", axes_of(model("every_second").init, jax.random.key(0))
    stacks = {
        leaf.shape
        for path, leaf in trees.flatten(weights(place)).items()
        if axes[path][:1] == ("layers",) and leaf.ndim > 1  # the numbers of layers are sliced
    }
    _, cache = prefill(place)(weights(place), BATCH, BATCH.tokens)
    arguments = (BATCH.tokens[:, :1], POSITIONS[:, :1], PHI[:, :1])
    traced = jax.make_jaxpr(model(place).extend)(weights(place), cache, *arguments)
    sliced = {
        equation.invars[0].aval.shape
        for equation in traced.jaxpr.eqns
        if equation.primitive.name == "slice"
    }
    assert stacks and not stacks & sliced


def test_unrolled_layers_are_the_same_model():
    """Prefill and decoding with one array for each layer (float32, fused otherwise: 1e-5)."""
    # blocks in front of the first cross-attention layer, and behind the last
    place = "from_the_last_of_three"
    functions, params = model(place), weights(place)
    axes = axes_of(functions.init, jax.random.key(0))

    @quick_jit
    def run(params, cache):
        pool = functions.encode(params, BATCH.frames, BATCH.frame_mask)
        media = Media(pool, BATCH.media_slot)
        first, cache = functions.extend(
            params, cache, BATCH.tokens[:, :10], POSITIONS[:, :10], PHI[:, :10], media
        )
        cache = cache.repeat(2).take(jnp.asarray([1, 2]))
        second, _ = functions.extend(
            params, cache, BATCH.tokens[:, 10:], POSITIONS[:, 10:], PHI[:, 10:]
        )
        return first, second

    cache = functions.empty_cache(B, 16, jnp.float32)
    ours, expected = run(unrolled_weights(params, axes), cache.unrolled()), run(params, cache)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, expected
    )


def test_the_chunked_form_gives_the_same_logits():
    """Chunks of 4 tokens touch at most 3 images here. 1e-5: float32."""
    full, _ = prefill()(weights(), BATCH, BATCH.tokens)
    chunked, _ = prefill(chunk=(4, 3))(weights(), BATCH, BATCH.tokens)
    np.testing.assert_allclose(chunked, full, rtol=1e-5, atol=1e-5)


def test_tokens_before_the_first_image_are_unchanged_by_any_image():
    """With phi = 0 (paper, A.1.3) no bit of a token depends on the images; later tokens do."""
    other = dataclasses.replace(BATCH, frames=255 - BATCH.frames)
    before, after = (
        np.asarray(prefill()(weights(), batch, BATCH.tokens)[0]) for batch in (BATCH, other)
    )
    np.testing.assert_array_equal(after[PHI == 0], before[PHI == 0])
    assert np.all(np.any(after != before, axis=-1)[PHI > 0])


def test_one_layer_shows_a_token_its_own_image_alone():
    """Perturbing every other image changes nothing, not in one bit.

    Each text attends directly to one image (paper, 2.3).
    """
    x = jnp.asarray(RNG.normal(size=(B, L, 16)), jnp.float32)
    pool = jnp.asarray(RNG.normal(size=(6, 3, 16)), jnp.float32)
    layer = hk.transform(
        lambda x, pool: GatedXattn(XattnConfig(), 2, MediaContext(PHI, pool, BATCH.media_slot))(x)[
            0
        ]
    )
    params = jax.tree.map(lambda leaf: leaf + 0.5, layer.init(jax.random.key(0), x, pool))
    run = jax.jit(lambda pool: layer.apply(params, None, x, pool))
    before = np.asarray(run(pool))
    own = np.where(
        np.asarray(PHI) > 0,
        np.take_along_axis(
            np.asarray(BATCH.media_slot), np.maximum(np.asarray(PHI) - 1, 0), axis=1
        ),
        -1,
    )
    for row in range(6):
        changed = np.any(np.asarray(run(pool.at[row].add(1.0) * 1.0)) != before, axis=-1)
        np.testing.assert_array_equal(changed, own == row)


def test_gated_block_equals_an_independent_reference():
    """One layer in float64 numpy, token by token, straight from Figure 4. 1e-5: float32."""
    x, pool = RNG.normal(size=(1, 4, 16)), RNG.normal(size=(2, 3, 16))
    phi, slot = np.array([[0, 1, 2, 2]]), np.array([[1, 0]])
    context = MediaContext(
        jnp.asarray(phi), standardise(jnp.asarray(pool, jnp.float32)), jnp.asarray(slot)
    )
    layer = hk.transform(lambda x: GatedXattn(XattnConfig(), 2, context)(x)[0])
    params = layer.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    params = jax.tree.map(lambda leaf: leaf + 0.2, params)
    p = {
        path.removeprefix("block/"): np.asarray(leaf, np.float64)
        for path, leaf in trees.flatten(params).items()
    }

    def norm(y, name):
        y = y - y.mean(-1, keepdims=True)
        return (
            y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}/scale"]
            + p[f"{name}/offset"]
        )

    out = x.copy()
    for t in range(4):
        if phi[0, t]:
            media = norm(pool[slot[0, phi[0, t] - 1]], "media_norm")
            q = np.einsum("d,dhk->hk", norm(x[0, t], "query_norm"), p["query/w"])
            k, v = (np.einsum("rd,dhk->rhk", media, p[f"{name}/w"]) for name in ("key", "value"))
            scores = np.exp(np.einsum("hk,rhk->hr", q, k) / np.sqrt(8))
            seen = np.einsum("hr,rhk->hk", scores / scores.sum(-1, keepdims=True), v)
            out[0, t] += np.tanh(p["attention_gate"]) * np.einsum("hk,hkd->d", seen, p["out/w"])
        hidden = np.maximum(norm(out[0, t], "mlp_norm") @ p["mlp/up/w"], 0) ** 2
        out[0, t] += np.tanh(p["dense_gate"]) * (hidden @ p["mlp/down/w"])
    np.testing.assert_allclose(
        layer.apply(params, None, jnp.asarray(x, jnp.float32)), out, rtol=1e-5, atol=1e-5
    )


def test_two_prompts_may_share_an_image_and_shards_have_their_own_pools():
    pool = jnp.arange(8.0)[:, None, None, None]
    slot = jnp.asarray([[0, 1], [0, -1], [1, 2], [3, 0]], jnp.int32)
    assert gather_media(pool, slot, 1)[..., 0, 0, 0].tolist() == [[0, 1], [0, 0], [1, 2], [3, 0]]
    assert gather_media(pool, slot, 2)[..., 0, 0, 0].tolist() == [[0, 1], [0, 0], [5, 6], [7, 4]]


def test_a_masked_frame_has_no_influence_and_a_video_may_have_other_frame_counts():
    """Rows 3 to 5 of the pool show one frame of two; four time embeddings serve seven frames."""
    encode = quick_jit(model().encode)
    before = np.asarray(encode(weights(), BATCH.frames, BATCH.frame_mask))
    after = np.asarray(encode(weights(), BATCH.frames.at[:, 1].set(7), BATCH.frame_mask))
    np.testing.assert_array_equal(after[3:], before[3:])
    assert np.all(np.any(after[:3] != before[:3], axis=(1, 2)))
    longer = jnp.concatenate([BATCH.frames] * 3 + [BATCH.frames[:, :1]], axis=1)
    out = encode(weights(), longer, jnp.ones((6, 7), bool))
    assert out.shape == before.shape
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("place", PLACES)
def test_every_weight_is_frozen_or_trained_and_has_axes(place):
    params = weights(place)
    rules = rules_of(FLAMINGO, trees.flatten(params), name="flamingo")
    frozen = {path: rule.frozen for path, rule in rules.items()}
    assert axes_of(model(place).init, jax.random.key(0)).keys() == trees.flatten(params).keys()
    trained, kept = trees.partition(params, {path: not value for path, value in frozen.items()})
    assert all(module.startswith(("flamingo/vision", "flamingo/lm")) for module in kept)
    every, offset = PLACES[place]
    assert trained["flamingo/xattn/block"]["attention_gate"].shape == (
        len(range(offset, 5, every)),
    )


def test_no_gradient_reaches_the_image_pool_of_an_unused_slot():
    """Row 5 of the pool belongs to nobody: whatever it shows, the losses stay."""
    losses = quick_jit(model().token_losses)
    before = losses(weights(), BATCH)
    np.testing.assert_array_equal(
        losses(weights(), dataclasses.replace(BATCH, frames=BATCH.frames.at[5].set(9))), before
    )


def test_xattn_places_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="0 <= offset < every"):
        XattnConfig(every=2, offset=2)


def test_more_heads_than_the_width_has_channels_are_refused():
    xattn = XattnConfig(num_heads=17)
    with pytest.raises(ConfigError, match=r"xattn.num_heads is 17 .* width of 16 among the heads"):
        dataclasses.replace(CONFIG, xattn=xattn)
    dataclasses.replace(CONFIG, xattn=dataclasses.replace(xattn, head_dim=1))


def test_weights_of_flamingo_9b_their_shapes_and_axes(golden):
    """One line for each weight: path, shape, logical axes, frozen or trained.

    Checkpoints have these names.
    """
    init = api.flamingo(FLAMINGOS["9B"]).init
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0)))
    names = axes_of(init, jax.random.key(0))
    rules = rules_of(FLAMINGO, shapes, name="flamingo")
    frozen = {path: rule.frozen for path, rule in rules.items()}
    lines = [
        f"{path} {list(shapes[path].shape)} {' '.join(map(str, names[path]))} "
        f"{'frozen' if frozen[path] else 'trained'}"
        for path in shapes
        if not path.startswith("flamingo/vision")  # golden/models/nfnet_f0.txt
    ]
    golden("models/flamingo_9b.txt", "\n".join(lines))
