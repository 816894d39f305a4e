"""Cross-attention with the options of the public re-implementations, compared with numpy."""

import dataclasses
import math
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.axes import spec
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.params import axes_of
from flamingo_jax.models import api, flamingo
from flamingo_jax.models.cache import Media
from flamingo_jax.models.gated_xattn import GatedXattn, MediaContext, XattnConfig, normalised_media
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.vit import ViTConfig
from flamingo_jax.training.objective import FLAMINGO, rules_of

D, W, H, K = 16, 12, 2, 6
OPEN_FLAMINGO = XattnConfig(
    num_heads=H,
    head_dim=K,
    activation="gelu_exact",
    media="resampler",
    media_norm=False,
    norm_epsilon=1e-3,
)
IDEFICS = XattnConfig(
    num_heads=H, head_dim=K, activation="swiglu", mlp_width=20, media="resampler", media_norm=False,
    norm="rms", norm_epsilon=1e-3, qk_norm=True, gate="vector",
)  # fmt: skip
CONFIGS = {
    "open_flamingo": OPEN_FLAMINGO,
    "idefics": IDEFICS,
    "no gate": dataclasses.replace(OPEN_FLAMINGO, gate="none"),
    "vanilla": dataclasses.replace(OPEN_FLAMINGO, dense=False),
    "all images": dataclasses.replace(OPEN_FLAMINGO, attend="all"),
}
RNG = np.random.default_rng(0)
X, POOL = RNG.normal(size=(2, 5, D)), RNG.normal(size=(3, 4, W))
PHI = np.array([[0, 1, 1, 2, 2], [0, 0, 0, 1, 1]])
SLOT = np.array([[1, 0], [2, -1]])


def _layer(config):
    """Returns (random weights, function of them)."""
    context = MediaContext(
        jnp.asarray(PHI),
        normalised_media(jnp.asarray(POOL, jnp.float32), config),
        jnp.asarray(SLOT, jnp.int32),
    )
    layer = hk.without_apply_rng(hk.transform(lambda x: GatedXattn(config, 4, context)(x)[0]))
    x = jnp.asarray(X, jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.3, 0.4, leaf.shape), jnp.float32), shapes
    )
    return params, lambda params: np.asarray(jax.jit(layer.apply)(params, x))


def _reference(config, params):
    """Numpy float64, token by token."""
    p = {
        path.removeprefix("block/"): np.asarray(leaf, np.float64)
        for path, leaf in trees.flatten(params).items()
    }

    def norm(y, name):
        if config.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        scaled = (
            y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_epsilon) * p[f"{name}/scale"]
        )
        return scaled + p.get(f"{name}/offset", 0)

    def of_heads(y, name):
        return (
            y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_epsilon) * p[f"{name}/scale"]
            if config.qk_norm
            else y
        )

    def gate(name):
        return np.ones(()) if config.gate == "none" else np.tanh(p[name])

    out = X.copy()
    for b, t in np.ndindex(PHI.shape):
        own = [PHI[b, t]] if PHI[b, t] else []
        if config.attend == "all":
            own = list(range(1, PHI[b, t] + 1))
        images = own or (
            [n + 1 for n in range(2) if SLOT[b, n] >= 0] if config.unseen == "average" else []
        )
        if images:
            media = np.concatenate([POOL[SLOT[b, n - 1]] for n in images])
            q = of_heads(
                np.einsum("d,dhk->hk", norm(X[b, t], "query_norm"), p["query/w"]), "query_head_norm"
            )
            k, v = (np.einsum("rd,dhk->rhk", media, p[f"{name}/w"]) for name in ("key", "value"))
            scores = np.einsum("hk,rhk->hr", q, of_heads(k, "key_head_norm")) / np.sqrt(K)
            scores = np.exp(scores if own else 0 * scores)
            seen = np.einsum("hr,rhk->hk", scores / scores.sum(-1, keepdims=True), v)
            out[b, t] += gate("attention_gate") * np.einsum("hk,hkd->d", seen, p["out/w"])
        if not config.dense:
            continue
        y = norm(out[b, t], "mlp_norm")
        up = y @ p["mlp/up/w"]
        if config.activation == "swiglu":
            linear = y @ p["mlp/gate/w"]
            hidden = linear / (1 + np.exp(-linear)) * up
        else:
            hidden = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        out[b, t] += gate("dense_gate") * (hidden @ p["mlp/down/w"])
    return out


@pytest.mark.parametrize(
    ("name", "unseen"),
    [*((name, "zero") for name in CONFIGS), ("open_flamingo", "average"), ("idefics", "average")],
)
def test_parity_with_numpy(name, unseen):
    """Tolerance 1e-5 of the largest value: float32 against float64."""
    config = dataclasses.replace(CONFIGS[name], unseen=unseen)
    params, run = _layer(config)
    expected = _reference(config, params)
    np.testing.assert_allclose(run(params), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_average_of_the_unseen_changes_no_token_that_sees_an_image():
    params, run = _layer(IDEFICS)
    zero, average = run(params), _layer(dataclasses.replace(IDEFICS, unseen="average"))[1](params)
    np.testing.assert_array_equal(average[PHI > 0], zero[PHI > 0])
    assert np.all(np.any(average != zero, axis=-1)[PHI == 0])


def test_weights_are_those_that_the_options_name():
    params, _ = _layer(IDEFICS)
    shapes = {
        path.removeprefix("block/"): leaf.shape for path, leaf in trees.flatten(params).items()
    }
    assert shapes == {
        "attention_gate": (D,), "dense_gate": (D,),
        "query_norm/scale": (D,), "mlp_norm/scale": (D,),
        "query_head_norm/scale": (K,), "key_head_norm/scale": (K,),
        "query/w": (D, H, K), "key/w": (W, H, K), "value/w": (W, H, K), "out/w": (H, K, D),
        "mlp/up/w": (D, 20), "mlp/gate/w": (D, 20), "mlp/down/w": (20, D),
    }  # fmt: skip


MODEL = flamingo.FlamingoConfig(
    vision=ViTConfig(patch_size=4, width=W, num_layers=1, num_heads=2, mlp_width=16, image_size=8),
    resampler=ResamplerConfig(
        num_layers=1, width=W, num_heads=2, head_dim=6, num_latents=4, input_projection=False,
        num_time_embeddings=0, qk_norm=True, activation="relu", mlp_bias=False, final_norm=True,
    ),
    lm=LMConfig(
        vocab_size=20, num_layers=3, width=D, num_heads=2, position="rotary", vocab_multiple=8
    ),
    xattn=dataclasses.replace(IDEFICS, every=2),
)  # fmt: skip


@pytest.mark.parametrize(("name", "left_out"), [("no gate", "gate"), ("vanilla", "mlp|dense_gate")])
def test_what_an_ablation_leaves_out_has_no_weights(name, left_out):
    (params, _), (base, _) = _layer(CONFIGS[name]), _layer(OPEN_FLAMINGO)
    ours, theirs = set(trees.flatten(params)), set(trees.flatten(base))
    assert theirs - ours == {path for path in theirs if re.search(left_out, path)}
    assert not ours - theirs


@pytest.mark.parametrize("attend", ["last", "all"])
def test_cached_decoding_equals_the_whole_forward(attend):
    """Prefill up to the last image, then token by token. 1e-5: float32."""
    xattn = dataclasses.replace(MODEL.xattn, attend=attend)
    model = api.flamingo(dataclasses.replace(MODEL, xattn=xattn))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: jnp.asarray(RNG.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes
    )
    tokens = jnp.asarray(RNG.integers(0, 20, PHI.shape), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32)[None], tokens.shape)
    phi = jnp.asarray(PHI, jnp.int32)

    @jax.jit
    def prefill(phi):
        frames = jnp.asarray(np.random.default_rng(2).integers(0, 256, (3, 1, 8, 8, 3)), jnp.uint8)
        media = Media(
            model.encode(params, frames, jnp.ones((3, 1), bool)), jnp.asarray(SLOT, jnp.int32)
        )
        return model.extend(
            params, model.empty_cache(2, 8, jnp.float32), tokens, positions, phi, media
        )

    whole, _ = prefill(phi)
    _, cache = prefill(jnp.where(positions < 4, phi, 0))  # the last row is overwritten
    logits, _ = jax.jit(model.extend)(params, cache, tokens[:, 4:], positions[:, 4:], phi[:, 4:])
    np.testing.assert_allclose(logits[:, 0], whole[:, 4], rtol=1e-5, atol=1e-5)


def test_every_table_matches_the_weights():
    """Frozen, decay and sharding; without a map of the visual tokens there is no flamingo/media."""
    init = api.flamingo(MODEL).init
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0)))
    assert not any(path.startswith("flamingo/media/") for path in shapes)
    rules_of(FLAMINGO, shapes, name="flamingo")
    names = axes_of(init, jax.random.key(0))
    assert names.keys() == shapes.keys()
    split = {
        path
        for path, axes in names.items()
        if "model" in str(spec(axes)) and path.startswith("flamingo/xattn/")
    }
    inside = "query/w key/w value/w out/w mlp/up/w mlp/gate/w mlp/down/w".split()
    assert split == {f"flamingo/xattn/block/{name}" for name in inside}


def test_all_images_and_the_mean_of_the_unseen_exclude_each_other():
    with pytest.raises(FieldError, match="Expected attend = 'last', or unseen = 'zero'"):
        XattnConfig(attend="all", unseen="average")
