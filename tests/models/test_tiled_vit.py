"""The tiled ViT: published counts, what padding does, precision, and a Flamingo that sees tiles.

What it computes is compared with transformers in tests/parity/test_mllama_vision.py.
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import axes, trees
from flamingo_jax.core.config import editable, from_dict
from flamingo_jax.core.params import axes_of
from flamingo_jax.core.precision import Policy, is_int8
from flamingo_jax.data.images.tiles import arrangements
from flamingo_jax.models import api, encoders, flamingo, int8, vision
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.sizes import PARTS, TILED_VITS, VITS
from flamingo_jax.models.tiled_vit import TiledViTConfig
from flamingo_jax.planning.flops import vision_forward
from tests.models.test_vit import _jit, _random

TINY = TILED_VITS["tiny"]  # tiles of 2 x 2 patches
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
# 1 x 3 tiles, 2 x 2, and no image at all
MASK = np.array([[3, 3, 3, 0], [6, 6, 6, 6], [0, 0, 0, 0]], np.int8)


def _network(config, dtype=jnp.float32):
    return hk.without_apply_rng(
        hk.transform(lambda frames, mask: vision.encode_visuals(config, frames, mask, dtype))
    )


@pytest.fixture(scope="module")
def params():
    return _random(_network(TINY).init, FRAMES, MASK)


@pytest.fixture(scope="module")
def encode():
    return _jit(_network(TINY).apply)


@pytest.fixture(scope="module")
def found(params, encode):
    return np.asarray(encode(params, FRAMES, MASK))


def test_counts_are_those_of_the_published_layers():
    """By hand, from the published sizes; biases are in the feed-forward layers alone."""
    config = TILED_VITS["llama"]
    shapes = jax.eval_shape(encoders.vision_encoder(config).init, jax.random.key(0))
    width, places = 1280, 1 + (560 // 14) ** 2
    layer = 4 * width**2 + 2 * width * 5120 + 5120 + width + 2 * 2 * width
    tables = places * width + 9 * 4 * places * width + 1 + 2 * (9 * 4 * width + 1)
    others = 14 * 14 * 3 * width + width + 2 * 2 * width
    assert trees.count(shapes) == 40 * layer + 8 * 2 + tables + others == 863_567_379
    assert (config.output_width, config.num_places) == (7680, 1601)


@pytest.mark.parametrize("most", [1, 4, 6, 12])
def test_tables_have_a_row_for_each_arrangement_of_the_reader(most):
    config = dataclasses.replace(TINY, max_tiles=most)
    assert config.num_arrangements == len(arrangements(most))


def test_weights_are_whole_on_every_chip():
    names = axes_of(_network(TINY).init, jax.random.key(0), FRAMES, MASK)
    assert all(not any(axes.spec(words)) for words in names.values())


def test_shape_and_finite_without_an_image(found):
    assert found.shape == (3, 4, 5, 96) and np.isfinite(found).all()


def test_pixels_of_tiles_that_an_image_lacks_do_not_matter(params, encode, found):
    others = FRAMES.copy()
    others[0, 3], others[2] = 7, 9
    np.testing.assert_array_equal(encode(params, others, MASK), found)


def test_an_image_is_encoded_by_its_own_arrangement_alone(params, encode, found):
    """4 x 1 tiles instead of 2 x 2: other embeddings. Images side by side do not see each other."""
    mask = MASK.copy()
    mask[1] = 1 + arrangements(4).index((4, 1))
    changed = np.asarray(encode(params, FRAMES, mask))
    np.testing.assert_allclose(changed[0], found[0], atol=1e-5)
    assert np.abs(changed[1] - found[1]).max() > 0.1
    swapped = encode(params, FRAMES[[1, 0, 2]], MASK[[1, 0, 2]])
    np.testing.assert_allclose(swapped[0], found[1], atol=1e-5)


def test_gates_of_0_leave_tiles_and_the_second_part_out(params, encode):
    """As at the start of training: all tiles have the same positions, and no global layer adds."""
    closed = trees.flatten(params)
    for path in closed:
        if path.endswith("gate"):
            closed[path] = jnp.zeros_like(closed[path])
    one, four = (np.full_like(MASK, number) for number in (6, 8))
    both = [encode(trees.unflatten(closed), FRAMES, mask) for mask in (one, four)]
    np.testing.assert_array_equal(*both)


def test_bfloat16_stays_near_float32(params, found):
    """bfloat16 keeps 8 bits; five blocks add to each rounding: 5 % of the largest feature."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    rounded = _jit(_network(TINY, jnp.bfloat16).apply)(half, FRAMES, MASK)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), found, atol=0.05 * np.abs(found).max())


def test_flops_by_hand():
    """2 for each weight and place, the scores and values of all pairs, and the patches."""
    config = TILED_VITS["llama"]
    width, patches, places = config.width, 1600, 4 * 1608  # 1601 and 7 that pad them
    layer = 2 * places * (4 * width**2 + 2 * width * config.mlp_width) + 4 * places**2 * width
    assert vision_forward(config, 560) == 10 * layer + 2 * patches * 3 * 14**2 * width


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TiledViTConfig(num_heads=7), "7 heads do not divide width 1280"),
        (lambda: TiledViTConfig(image_size=561), "patches of 14 pixels do not fill a tile of 561"),
        (lambda: TiledViTConfig(kept=(3, 3)), r"kept is \(3, 3\); expected ascending numbers"),
        (lambda: TiledViTConfig(kept=(32,)), r"kept is \(32,\); expected .* below 32"),
        (lambda: TiledViTConfig(max_tiles=0), "max_tiles is 0; expected a whole number from 1 to"),
        (lambda: vision.num_patches(TINY, 32), "tiles of 16 pixels got images of 32"),
        (lambda: _two_tiles(TINY), "got 2 tiles for each image; expected 4"),
        (lambda: _alone(TINY), "sees the tiles of an image together"),
    ],
)  # fmt: skip
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _two_tiles(config):
    frames, mask = jnp.asarray(FRAMES[:, :2]), jnp.asarray(MASK[:, :2])
    return _network(config).init(jax.random.key(0), frames, mask)


def _alone(config):
    model = hk.transform(lambda frames: vision.encode_frames(config, frames, jnp.float32))
    return model.init(jax.random.key(0), jnp.asarray(FRAMES[:, 0]))


def test_a_flamingo_sees_tiles_through_a_resampler(params, encode, found):
    """Its latents and features are those of the real tiles; the tower's products are in 8 bits."""
    config = flamingo.FlamingoConfig(
        vision=TINY,
        resampler=ResamplerConfig(num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=3),
        lm=LMConfig(vocab_size=20, num_layers=1, width=16, num_heads=2, vocab_multiple=4),
        xattn=XattnConfig(every=1),
    )
    model = api.flamingo(config)
    whole = _random(model.init)
    of_vision = {f"flamingo/{name}": weights for name, weights in params.items()}
    whole = {**whole, **of_vision}
    features = _jit(model.features)(whole, FRAMES[:2], MASK[:2])
    expected = [found[0, :3].mean((0, 1)), found[1].mean((0, 1))]
    np.testing.assert_allclose(features, expected, atol=1e-5)
    shown = _jit(model.encode)
    latents = shown(whole, FRAMES[:2], MASK[:2])
    others = np.where((MASK != 0)[:, :, None, None, None], FRAMES, 3)[:2]
    np.testing.assert_array_equal(shown(whole, others, MASK[:2]), latents)
    rounded = jax.eval_shape(lambda: int8.cast(model.init, whole, Policy("bfloat16", "int8")))
    paths = {path for path, leaf in trees.flatten(rounded).items() if is_int8(leaf)}
    assert {path for path in paths if "vision" in path} == {
        f"flamingo/vision/{stack}/block/{part}/w"
        for stack in ("layers", "global_layers")
        for part in (
            *(f"attention/{p}" for p in ("query", "key", "value", "out")),
            "mlp/up",
            "mlp/down",
        )
    }


def test_one_encoder_is_given():
    assert ModelConfig(tiled_vit=TINY).encoder() == TINY
    assert ModelConfig(tiled_vit=TINY).of_stage("flamingo").tiled_vit == TINY
    assert ModelConfig(tiled_vit=TINY).of_stage("language_model").tiled_vit is None
    with pytest.raises(ValueError, match=r"model\.vit and model\.tiled_vit are both given"):
        ModelConfig(vit=VITS["tiny"], tiled_vit=TINY).encoder()
    parts = editable(PARTS)
    parts.vision, parts.tiled_vit = None, editable(TINY)
    parts.tiled_vit.update(kept=(1,))
    expected = dataclasses.replace(TINY, kept=(1,))
    assert from_dict(ModelConfig, parts).flamingo().vision == expected
