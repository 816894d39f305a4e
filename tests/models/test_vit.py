"""ViT: published counts, the positions of another grid, precision, and a Flamingo with a ViT."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import axes, trees
from flamingo_jax.core.config import editable, from_dict
from flamingo_jax.core.params import axes_of
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api, flamingo, vision
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.sizes import NFNETS, PARTS, VITS
from flamingo_jax.models.vit import ViTConfig, interpolate_positions
from flamingo_jax.planning.flops import vision_forward
from flamingo_jax.training.objective import FLAMINGO, rules_of

TINY = VITS["tiny"]  # 4 x 4 patches of 32 x 32 pixels
FRAMES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)), jnp.uint8)


def _network(config, dtype=jnp.float32):
    return hk.without_apply_rng(
        hk.transform(lambda frames: vision.encode_frames(config, frames, dtype))
    )


def _jit(function):
    """What takes time here is compilation alone."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def _random(init, *arrays):
    """No weight stays at its initial value: gains of 1 and biases of 0 would hide what they do."""
    shapes, rng = jax.eval_shape(init, jax.random.key(0), *arrays), np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def params():
    return _random(_network(dataclasses.replace(TINY, final_norm=True)).init, FRAMES)


def _without_final_norm(params):
    return {
        module: weights for module, weights in params.items() if not module.endswith("final_norm")
    }


@pytest.mark.parametrize(
    ("name", "published", "joint"), [("L14", 303_966_208, 768), ("H14", 632_076_800, 1024)]
)
def test_counts_are_those_of_clips_towers(name, published, joint):
    """The published counts include the last norm, and the E x J projection, which ours lacks."""
    config = dataclasses.replace(VITS[name], final_norm=True)
    shapes = jax.eval_shape(
        _network(config).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.uint8)
    )
    assert trees.count(shapes) == published - config.width * joint


def test_weights_are_whole_on_every_chip():
    """As NFNet's: its images are spread over all axes of the mesh, its weights are not."""
    names = axes_of(_network(TINY).init, jax.random.key(0), FRAMES)
    assert all(not any(axes.spec(words)) for words in names.values())


@pytest.fixture(scope="module")
def every(params):
    """What the class token and the patches are before the last norm."""
    config = dataclasses.replace(TINY, features="class_and_patches")
    return _jit(_network(config).apply)(_without_final_norm(params), FRAMES)


@pytest.mark.parametrize(
    ("features", "number"), [("patches", 16), ("class_and_patches", 17), ("class", 1)]
)
def test_what_comes_out(params, every, features, number):
    config = dataclasses.replace(TINY, features=features)
    assert vision.num_patches(config, 32) == number
    found = _jit(_network(config).apply)(_without_final_norm(params), FRAMES)
    assert found.shape == (2, number, 32)
    np.testing.assert_array_equal(
        found, {"patches": every[:, 1:], "class": every[:, :1]}.get(features, every)
    )
    behind = _jit(_network(dataclasses.replace(config, final_norm=True)).apply)(params, FRAMES)
    gain, offset = (params["vision/final_norm"][name] for name in ("scale", "offset"))
    centred = found - found.mean(-1, keepdims=True)
    expected = (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain[None, None]
        + offset[None, None]
    )
    np.testing.assert_allclose(behind, expected, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bicubic", "antialiased", "linear"])
@pytest.mark.parametrize("side", [2, 4, 7])
def test_positions_of_another_grid(interpolation, side):
    """A constant stays one, the class token's row stays, and what is symmetric stays symmetric.

    Exact values: tests/parity.
    """
    rng = np.random.default_rng(2)
    grid = rng.normal(size=(4, 4, 3))
    grid[..., 0], grid[..., 1] = 0.5, grid[..., 1] + grid[::-1, ..., 1]
    table = jnp.asarray(np.concatenate([rng.normal(size=(1, 3)), grid.reshape(16, 3)]), jnp.float32)
    found = np.asarray(interpolate_positions(table, side, interpolation=interpolation))
    assert found.shape == (1 + side**2, 3)
    np.testing.assert_array_equal(found[0], table[0])
    other = found[1:].reshape(side, side, 3)
    np.testing.assert_allclose(other[..., 0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(other[..., 1], other[::-1, :, 1], atol=1e-6)
    if side == 4:
        np.testing.assert_array_equal(found, table)


def test_bfloat16_stays_near_float32(params, every):
    """bfloat16 keeps 8 bits; two blocks add to the rounding of each: 3 % of the largest feature."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _without_final_norm(params))
    rounded, exact = _jit(_network(TINY, jnp.bfloat16).apply)(half, FRAMES), every[:, 1:]
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(num_heads=7), "7 heads do not divide width 1024"),
        (lambda: ViTConfig(std=(0.5, 0.0, 0.5)), r"std\[1\] is 0.0; expected a number above 0"),
        (lambda: ViTConfig(image_size=225), "patches of 14 pixels do not fill an image of 225"),
        (lambda: ViTConfig(class_token=False, features="class"), "there is no such token"),
        (lambda: vision.num_patches(TINY, 20), "patches of 8 pixels do not fill an image of 20"),
    ],
)
def test_shapes_that_do_not_divide(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["L14", "H14"])
def test_flops_by_hand(name):
    """2 for each weight and token, and the scores and values of all pairs of tokens."""
    config = VITS[name]
    width, patches = config.width, 256
    tokens = patches + 1
    layer = 2 * tokens * (4 * width**2 + 2 * width * config.mlp_width) + 4 * tokens**2 * width
    assert (
        vision_forward(config, 224) == config.num_layers * layer + 2 * patches * 3 * 14**2 * width
    )


@pytest.fixture(scope="module")
def seeing():
    """A Flamingo with a ViT, its config and a batch: two images, one of them in each row."""
    config = flamingo.FlamingoConfig(
        vision=dataclasses.replace(TINY, num_layers=1),
        resampler=ResamplerConfig(num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=3),
        lm=LMConfig(vocab_size=20, num_layers=1, width=16, num_heads=2, vocab_multiple=4),
        xattn=XattnConfig(every=1),
    )
    tokens = jnp.asarray(np.random.default_rng(3).integers(0, 20, (2, 6)), jnp.int32)
    batch = Batch(
        tokens=tokens,
        segment=jnp.ones_like(tokens),
        loss_weights=jnp.ones((2, 6), jnp.float32),
        media_index=jnp.asarray([[0, 1, 1, 1, 1, 1]] * 2, jnp.int32),
        media_slot=jnp.asarray([[0], [1]], jnp.int32),
        frames=FRAMES[:, None],
        frame_mask=jnp.ones((2, 1), bool),
    )
    return config, batch


def test_flamingo_sees_through_a_vit(seeing):
    """In the compute form or not, losses and features are the same bits; the images matter.

    The tower is frozen.
    """
    config, batch = seeing
    plain, computed = api.flamingo(config), api.flamingo(config, compute_form=True)
    params = _random(plain.init)
    rules = rules_of(FLAMINGO, trees.flatten(params), name="flamingo")
    is_frozen = {path: rule.frozen for path, rule in rules.items()}
    assert {path for path in is_frozen if path.startswith("flamingo/vision")} <= {
        p for p in is_frozen if is_frozen[p]
    }
    losses, ready = _jit(plain.token_losses), computed.compute_form(params)
    assert (
        ready["flamingo/vision"].keys()
        == params["flamingo/vision"].keys()
        == {"class_embedding", "positions"}
    )
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(ready) == shapes(jax.eval_shape(computed.compute_form_init, jax.random.key(0)))
    found = losses(params, batch)
    # 1e-5: the language model's fused queries, keys and values are summed in another order.
    np.testing.assert_allclose(
        _jit(computed.token_losses)(ready, batch), found, rtol=1e-5, atol=1e-5
    )
    others = losses(params, dataclasses.replace(batch, frames=batch.frames[::-1]))
    assert np.abs(others - found).max() > 1e-3
    pooled = _jit(plain.features)(params, batch.frames, batch.frame_mask)
    features = _jit(_network(config.vision).apply)(trees.subtree(params, "flamingo"), FRAMES)
    np.testing.assert_allclose(pooled, features.mean(1), atol=1e-5)


def test_one_encoder_is_given():
    tiny, vit = NFNETS["tiny"], TINY
    assert ModelConfig(vision=tiny).encoder() == tiny and ModelConfig(vit=vit).encoder() == vit
    assert ModelConfig(vit=vit).of_stage("contrastive").vit == vit
    assert ModelConfig(vit=vit).of_stage("language_model").vit is None
    with pytest.raises(ValueError, match=r"model\.vision and model\.vit are both given"):
        ModelConfig(vision=tiny, vit=vit).encoder()
    with pytest.raises(ValueError, match=r"model\.vision is None"):
        ModelConfig().encoder()


def test_a_config_takes_a_vit_instead_of_the_nfnet():
    parts = editable(PARTS)
    assert isinstance(from_dict(ModelConfig, parts).encoder(), NFNetConfig)
    parts.vision, parts.vit = None, editable(VITS["L14"])
    parts.vit.update(width=1280, num_layers=32, mlp_width=5120, activation="gelu_exact")
    assert from_dict(ModelConfig, parts).flamingo().vision == VITS["H14"]
