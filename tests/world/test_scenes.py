"""Pictures of the synthetic world: what they show, held-out pairs, and dependence on the seed."""

import io

import numpy as np
import pytest
from PIL import Image

from flamingo_jax.world import scenes as synthetic
from flamingo_jax.world.scenes import (
    COLOUR,
    COLOURS,
    HELD_OUT,
    POOLS,
    SEEN,
    SHAPE,
    SHAPES,
    SIZE,
    SIZES,
)


@pytest.fixture(scope="module")
def drawn():
    return {pool: synthetic.scenes(1, pool, 0) for pool in POOLS}


def test_eight_pairs_are_held_out_one_for_each_colour_and_shape():
    assert len(HELD_OUT) == 8
    assert len(SEEN) == 56
    assert sorted(c for c, _ in HELD_OUT) == sorted(s for _, s in HELD_OUT) == list(range(8))
    assert all((s - c) % 8 == 3 for c, s in HELD_OUT)


@pytest.mark.parametrize("pool", POOLS)
def test_pool_shows_its_pairs_and_no_others(drawn, pool):
    attributes = drawn[pool].attributes
    assert attributes.shape == (synthetic.BLOCK, POOLS[pool].num_objects, 3)
    pairs = {(c, s) for c, s, _ in attributes.reshape(-1, 3).tolist()}
    assert pairs <= set(HELD_OUT if POOLS[pool].held_out else SEEN)
    assert len(pairs) > (7 if POOLS[pool].held_out else 50)
    assert set(attributes[..., SIZE].ravel().tolist()) == {0, 1}


def test_two_objects_differ_in_colour_and_shape(drawn):
    first, second = drawn["train_two"].attributes[:, 0], drawn["train_two"].attributes[:, 1]
    assert (first[:, COLOUR] != second[:, COLOUR]).all()
    assert (first[:, SHAPE] != second[:, SHAPE]).all()


def test_pools_seeds_and_blocks_are_independent(drawn):
    blocks = [scenes.images for scenes in drawn.values()]
    blocks += [
        synthetic.scenes(2, "train_one", 0).images,
        synthetic.scenes(1, "train_one", 1).images,
    ]
    pictures = [image.tobytes() for block in blocks for image in block]
    assert len(set(pictures)) == len(pictures)


def test_picture_follows_from_seed_pool_and_index():
    """A picture does not depend on the number of pictures, or on what was drawn before.

    The second block starts at picture 256.
    """
    many = list(synthetic.iterate(3, "train_two", synthetic.BLOCK + 3))
    few = list(synthetic.iterate(3, "train_two", 5))
    assert len(many) == synthetic.BLOCK + 3
    assert [png for _, png in many[:5]] == [png for _, png in few]
    block = synthetic.scenes(3, "train_two", 1)
    np.testing.assert_array_equal(_decode(many[-1][1]), block.images[2])
    np.testing.assert_array_equal(many[-1][0], block.attributes[2])


def test_png_is_lossless(drawn):
    image = drawn["train_one"].images[0]
    np.testing.assert_array_equal(_decode(synthetic.encode_png(image)), image)


def test_colour_and_size_can_be_read_from_the_picture(drawn):
    """The mean of the pixels that differ most from the background is nearest to the colour.

    Big objects cover more pixels than small ones.
    """
    right, area = 0, {0: [], 1: []}
    for (colour, shape, size), image in zip(
        drawn["test_one"].attributes[:, 0], drawn["test_one"].images, strict=True
    ):
        pixels = image.reshape(-1, 3).astype(float) / 255
        ground = np.median(pixels, axis=0)
        distance = np.abs(pixels - ground).max(axis=-1)
        inside = pixels[distance > 0.7 * np.quantile(distance, 0.995)]
        nearest = np.square(synthetic._RGB - inside.mean(axis=0)).sum(axis=-1).argmin()
        right += nearest == colour
        if SHAPES[shape] == "square":
            area[size].append((distance > 0.3).sum())
    assert right >= 0.97 * synthetic.BLOCK
    assert max(area[0]) < min(area[1])


def test_shapes_differ_and_are_inside_the_picture():
    white, big = COLOURS.index("white"), SIZES.index("big")
    attributes = np.array([[[white, shape, big]] for shape in range(8)])
    inside = [SHAPES.index(name) for name in ("circle", "square", "diamond", "ring", "bar")]
    for seed in range(20):
        images = synthetic.render(np.random.default_rng(seed), attributes)
        masks = images.min(axis=-1) > 150
        assert (masks.sum(axis=(1, 2)) > 40).all()
        sides = [masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]
        assert not np.concatenate(sides, axis=1)[inside].any()
    shapes = {_centred(mask).tobytes() for mask in masks}
    assert len(shapes) == 8


def test_two_objects_are_in_different_halves():
    """Along one axis, each object is in another half."""
    rng = np.random.default_rng(0)
    radius = np.full((500, 2), 7.4, np.float32)
    centre = synthetic._places(rng, radius)
    apart = (centre[:, 0] < 16) != (centre[:, 1] < 16)
    assert apart.any(axis=-1).mean() > 0.99
    assert (centre >= radius[..., None]).all()
    assert (centre <= 32 - radius[..., None]).all()


def test_video_moves_in_its_direction():
    seen = set()
    for index in range(12):
        video = synthetic.video(1, index, 6)
        assert video.frames.shape == (6, 32, 32, 3)
        ground = np.median(video.frames, axis=(1, 2), keepdims=True)
        mask = np.abs(video.frames - ground).max(axis=-1) > 60
        where = np.array([np.argwhere(m).mean(axis=0) for m in mask])  # [F, (row, column)]
        moved = where[-1] - where[0]
        axis = int(np.abs(moved).argmax())
        assert ("up", "down", "left", "right")[2 * axis + int(moved[axis] > 0)] == video.direction
        assert not synthetic.is_held_out(*video.attributes[:2].tolist())
        seen.add(video.direction)
    assert len(seen) == 4
    np.testing.assert_array_equal(synthetic.video(1, 5, 6).frames, synthetic.video(1, 5, 6).frames)


def _decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def _centred(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.argwhere(mask).T
    return mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
