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
from flamingo_jax.core.config import ConfigError, FieldError
from flamingo_jax.core.params import axes_of
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api, flamingo
from flamingo_jax.models.cache import Media
from flamingo_jax.models.gated_xattn import GatedXattn, XattnConfig, as_layers_take
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.media_context import MediaContext, first_images
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.vit import ViTConfig
from flamingo_jax.training.objective import FLAMINGO, flamingo_table, rules_of

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
LLAMA = dataclasses.replace(
    IDEFICS, num_heads=2 * H, num_kv_heads=H, gate="scalar", attend="run", skip_unseen=True
)
CONFIGS = {
    "open_flamingo": OPEN_FLAMINGO,
    "llama": LLAMA,
    "idefics": IDEFICS,
    "no gate": dataclasses.replace(OPEN_FLAMINGO, gate="none"),
    "vanilla": dataclasses.replace(OPEN_FLAMINGO, dense=False),
    "all images": dataclasses.replace(OPEN_FLAMINGO, attend="all"),
}
RNG = np.random.default_rng(0)
X, POOL = RNG.normal(size=(2, 5, D)), RNG.normal(size=(3, 4, W))
POOL[0, 2:] = 0  # padding, for a model that has some
PHI = np.array([[0, 1, 1, 2, 2], [0, 0, 0, 1, 1]])
SIDE_BY_SIDE = np.array([[0, 1, 2, 2, 2], [0, 0, 0, 1, 1]])
SLOT = np.array([[1, 0], [2, -1]])


def _phi(config):
    return SIDE_BY_SIDE if config.attend == "run" else PHI


def _layer(config, *, has_padding=False):
    """Returns (random weights, function of them)."""
    context = MediaContext(
        jnp.asarray(_phi(config)), jnp.asarray(POOL, jnp.float32), jnp.asarray(SLOT, jnp.int32)
    )
    context = as_layers_take(context, config, has_padding=has_padding)
    layer = hk.without_apply_rng(hk.transform(lambda x: GatedXattn(config, 4, context)(x)[0]))
    x = jnp.asarray(X, jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.3, 0.4, leaf.shape), jnp.float32), shapes
    )
    return params, lambda params: np.asarray(jax.jit(layer.apply)(params, x))


def _reference(config, params, *, has_padding=False):
    """Numpy float64, token by token."""
    phi = _phi(config)
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
    for b, t in np.ndindex(phi.shape):
        own = [phi[b, t]] if phi[b, t] else []
        if config.attend == "all" or (config.attend == "run" and b == 0):
            own = list(range(1, phi[b, t] + 1))
        images = own or (
            [n + 1 for n in range(2) if SLOT[b, n] >= 0] if config.unseen == "average" else []
        )
        if images:
            media = np.concatenate([POOL[SLOT[b, n - 1]] for n in images])
            media = media[np.any(media != 0, axis=1)] if has_padding else media
            q = of_heads(
                np.einsum("d,dhk->hk", norm(X[b, t], "query_norm"), p["query/w"]), "query_head_norm"
            )
            k, v = (np.einsum("rd,dhk->rhk", media, p[f"{name}/w"]) for name in ("key", "value"))
            k = of_heads(k, "key_head_norm")
            k, v = (np.repeat(x, len(q) // x.shape[1], axis=1) for x in (k, v))
            scores = np.einsum("hk,rhk->hr", q, k) / np.sqrt(K)
            scores = np.exp(scores if own else 0 * scores)
            seen = np.einsum("hr,rhk->hk", scores / scores.sum(-1, keepdims=True), v)
            out[b, t] += gate("attention_gate") * np.einsum("hk,hkd->d", seen, p["out/w"])
        if not config.dense or (config.skip_unseen and not phi[b, t]):
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


@pytest.mark.parametrize("name", ["open_flamingo", "llama", "all images"])
def test_no_token_attends_padding(name):
    params, run = _layer(CONFIGS[name], has_padding=True)
    expected = _reference(CONFIGS[name], params, has_padding=True)
    np.testing.assert_allclose(run(params), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(_layer(CONFIGS[name])[1](params) - expected).max() > 1e-2


def test_a_token_without_an_image_passes_by_bit_for_bit():
    params, run = _layer(LLAMA)
    x = X.astype(np.float32)
    np.testing.assert_array_equal(run(params)[SIDE_BY_SIDE == 0], x[SIDE_BY_SIDE == 0])
    empty = MediaContext(jnp.zeros_like(PHI), slot=jnp.zeros((2, 0), jnp.int32))
    layer = hk.transform(lambda x: GatedXattn(LLAMA, 4, empty)(x)[0])
    np.testing.assert_array_equal(layer.apply({}, None, jnp.asarray(x)), x)


def test_a_run_is_images_with_no_text_between_them_in_one_document():
    phi = jnp.asarray([[0, 1, 1, 2, 3, 4, 4, 5, 6, 6], [1, 2, 0, 0, 3, 4, 5, 5, 5, 0]])
    expected = [[0, 1, 1, 2, 2, 2, 2, 5, 5, 5], [1, 1, 1, 1, 3, 3, 3, 3, 3, 3]]
    assert first_images(phi).tolist() == expected
    assert first_images(np.asarray(phi)).tolist() == expected
    segment = jnp.asarray([[1] * 8 + [2] * 2, [1] * 2 + [2] * 4 + [3] * 4])
    expected = [[0, 1, 1, 2, 2, 2, 2, 5, 6, 6], [1, 1, 1, 1, 3, 3, 5, 5, 5, 5]]
    assert first_images(phi, segment).tolist() == expected


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


def _random(shapes):
    return jax.tree.map(
        lambda leaf: jnp.asarray(RNG.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes
    )


@pytest.mark.parametrize("attend", ["last", "all", "run", "run, no resampler"])
def test_cached_decoding_equals_the_whole_forward(attend):
    """Prefill up to the last image, then token by token. 1e-5: float32."""
    config = dataclasses.replace(
        MODEL, xattn=dataclasses.replace(MODEL.xattn, attend=attend.split(",")[0])
    )
    if attend.startswith("run"):
        config = dataclasses.replace(config, xattn=dataclasses.replace(LLAMA, every=2))
    if "no resampler" in attend:
        xattn = dataclasses.replace(config.xattn, media="language")
        config = dataclasses.replace(config, resampler=None, xattn=xattn)
    model = api.flamingo(config)
    params = _random(jax.eval_shape(model.init, jax.random.key(0)))
    tokens = jnp.asarray(RNG.integers(0, 20, PHI.shape), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32)[None], tokens.shape)
    phi = jnp.asarray(_phi(config.xattn), jnp.int32)

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


def test_a_model_without_a_resampler_has_no_row_for_it():
    xattn = dataclasses.replace(LLAMA, every=2, media="language")
    config = dataclasses.replace(MODEL, resampler=None, xattn=xattn)
    shapes = trees.flatten(jax.eval_shape(api.flamingo(config).init, jax.random.key(0)))
    rules = rules_of(flamingo_table(has_resampler=False), shapes, name="flamingo")
    assert rules.keys() == shapes.keys() and "flamingo/media/w" in rules


@pytest.mark.parametrize("attend", ["all", "run"])
def test_several_images_and_the_mean_of_the_unseen_exclude_each_other(attend):
    with pytest.raises(FieldError, match="Expected attend = 'last', or unseen = 'zero'"):
        XattnConfig(attend=attend, unseen="average")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"skip_unseen": True, "unseen": "average"}, "or skip_unseen = False"),
        ({"skip_unseen": True, "dense": False}, "or skip_unseen = False"),
        ({"num_heads": 6, "num_kv_heads": 4}, "6 is not divisible by num_kv_heads 4"),
    ],
)
def test_options_that_do_not_go_together(options, match):
    with pytest.raises(FieldError, match=match):
        XattnConfig(**options)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"xattn": XattnConfig(num_kv_heads=3)}, "the language model's 2 heads"),
        ({"resampler": None}, "Expected media = 'language' and a ViT"),
        (
            {"resampler": None, "vision": NFNetConfig(), "xattn": XattnConfig()},
            "the encoder is a NFNetConfig",
        ),
    ],
)
def test_parts_that_do_not_go_together(parts, match):
    with pytest.raises(ConfigError, match=match):
        dataclasses.replace(MODEL, **parts)


def test_key_and_value_heads_have_an_axis_of_their_own():
    """A mesh that does not divide them has each of them on several chips (`sharding.layout`)."""
    xattn = dataclasses.replace(LLAMA, every=2)
    init = api.flamingo(dataclasses.replace(MODEL, xattn=xattn)).init
    names = axes_of(init, jax.random.key(0))
    block = "flamingo/xattn/block"
    assert [names[f"{block}/{part}/w"][-2] for part in ("query", "key", "value")] == [
        "heads", "kv_heads", "kv_heads",
    ]  # fmt: skip


def test_new_tokens_that_are_never_predicted_have_input_rows_alone():
    config = dataclasses.replace(MODEL, new_tokens=("<image>", "<b>"), predicts_new_tokens=False)
    model = api.flamingo(config)
    params = _random(jax.eval_shape(model.init, jax.random.key(0)))
    assert {path for path in trees.flatten(params) if "new_tokens" in path} == {
        "flamingo/new_tokens/input"
    }
    tokens = jnp.asarray([[1, 20, 2, 21, 3]], jnp.int32)
    ones, zeros = jnp.ones_like(tokens), jnp.zeros_like(tokens)
    batch = Batch(
        tokens=tokens, segment=ones, loss_weights=ones.astype(jnp.float32), media_index=zeros,
        media_slot=zeros[:, :0], frames=jnp.zeros((0, 1, 8, 8, 3), jnp.uint8),
        frame_mask=jnp.zeros((0, 1), bool),
    )  # fmt: skip
    losses = jax.jit(model.token_losses)(params, batch)[0]
    assert losses[0] == losses[2] == 0 and min(losses[1], losses[3]) > 0
    logits, _ = jax.jit(model.extend)(
        params, model.empty_cache(1, 5, jnp.float32), tokens, jnp.arange(5)[None], zeros
    )
    assert logits.shape[-1] == 22 and bool(jnp.all(logits[..., 20:] < -1e29))
    np.testing.assert_allclose(
        -jax.nn.log_softmax(logits)[0, [1, 3], [2, 3]], losses[jnp.asarray([1, 3])], rtol=1e-5
    )
