"""Flip and colours of a visual input depend only on its pixels and its key."""

import colorsys
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.data.config import NO_AUGMENTATION, AugmentConfig
from flamingo_jax.data.images.augment import augment
from flamingo_jax.data.images.read import MEAN_COLOUR, fit

FLIP_ONLY = AugmentConfig(flip=0.5, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def only(**ranges: float) -> AugmentConfig:
    return dataclasses.replace(NO_AUGMENTATION, **ranges)


def pool(number: int, frames: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (number, frames, 6, 8, 3)).astype(np.uint8)
    return images, rng.integers(0, 1 << 32, (number, 2), dtype=np.uint32)


run = jax.jit(augment, static_argnums=2)


def test_nothing_on_is_the_identity_bit_for_bit():
    frames, keys = pool(3)
    np.testing.assert_array_equal(run(frames, keys, NO_AUGMENTATION), frames)
    np.testing.assert_array_equal(run(frames, None, NO_AUGMENTATION), frames)
    with pytest.raises(ValueError, match="no media_key"):
        augment(jnp.asarray(frames), None, AugmentConfig())


def test_a_row_is_a_function_of_its_key_alone():
    """The bytes are the same in another order, in another batch, and over 1, 2 or 4 devices."""
    frames, keys = pool(8)
    whole = np.asarray(run(frames, keys, AugmentConfig()))
    assert (whole != frames).any(axis=(1, 2, 3, 4)).all()
    order = np.array([5, 2, 7, 0])
    np.testing.assert_array_equal(run(frames[order], keys[order], AugmentConfig()), whole[order])
    np.testing.assert_array_equal(run(frames[3:4], keys[3:4], AugmentConfig()), whole[3:4])
    for count in (2, 4):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        spread = run(
            jax.device_put(frames, sharding), jax.device_put(keys, sharding), AugmentConfig()
        )
        np.testing.assert_array_equal(spread, whole)


def test_all_frames_of_a_clip_get_the_same():
    frames, keys = pool(4, frames=3)
    clips = np.asarray(run(frames, keys, AugmentConfig()))
    for f in range(3):
        np.testing.assert_array_equal(
            clips[:, f : f + 1], run(frames[:, f : f + 1], keys, AugmentConfig())
        )


def test_half_of_the_images_are_flipped():
    frames, keys = pool(400)
    done = np.asarray(run(frames, keys, FLIP_ONLY))
    flipped = (done == frames[:, :, :, ::-1]).all(axis=(1, 2, 3, 4))
    same = (done == frames).all(axis=(1, 2, 3, 4))
    assert (flipped ^ same).all()
    assert 160 <= flipped.sum() <= 240  # four standard deviations


@pytest.mark.parametrize("colour", [(200, 60, 40), (90, 90, 90), (60, 120, 180)])
def test_each_range_does_what_it_says(colour):
    """Changes of an image of one colour.

    Brightness shifts all channels alike. Contrast changes the distance to the mean colour.
    Saturation and hue keep the luma.
    """
    frames = np.full((300, 1, 4, 4, 3), colour, np.uint8)
    _, keys = pool(300)
    luma = np.array([0.299, 0.587, 0.114])

    def changed(**ranges):
        return np.asarray(run(frames, keys, only(**ranges)))[:, 0, 0, 0].astype(float)

    shift = changed(brightness=0.1) - colour
    np.testing.assert_allclose(shift, np.repeat(shift[:, :1], 3, axis=1), atol=1)
    assert -26 <= shift.min() < -20 < 20 < shift.max() <= 26  # 0.1 of 255
    factor = (changed(contrast=0.2) - MEAN_COLOUR)[:, 0] / (colour[0] - MEAN_COLOUR[0])
    assert 0.78 <= factor.min() < 0.85 < 1.15 < factor.max() <= 1.22
    for done in (changed(saturation=0.2), changed(hue=0.02)):
        np.testing.assert_allclose(done @ luma, np.dot(colour, luma), atol=1.5)
    if len(set(colour)) == 1:  # grey stays grey
        same = np.broadcast_to(colour, (300, 3))
        np.testing.assert_array_equal(changed(saturation=0.2, hue=0.5), same)
        return
    saturation = np.ptp(changed(saturation=0.2), axis=1) / np.ptp(colour)
    assert 0.78 <= saturation.min() < 0.85 < 1.15 < saturation.max() <= 1.22
    hues = np.array([colorsys.rgb_to_hsv(*rgb)[0] for rgb in changed(hue=0.02)])
    turned = (hues - colorsys.rgb_to_hsv(*colour)[0] + 0.5) % 1 - 0.5
    assert -0.04 <= turned.min() < -0.01 < 0.01 < turned.max() <= 0.04


def test_a_turn_of_the_colour_circle_by_a_third_makes_green_of_red():
    frames = np.full((1, 1, 2, 2, 3), (200, 80, 80), np.uint8)
    keys = np.random.default_rng(0).integers(0, 1 << 32, (200, 2), dtype=np.uint32)
    done = np.asarray(run(np.repeat(frames, 200, axis=0), keys, only(hue=0.5)))[:, 0, 0, 0]
    assert set(done.argmax(axis=1)) == {0, 1, 2}


def test_padding_keeps_the_mean_colour():
    """Padding is above and below, or at the sides. A single pixel of its colour is no padding."""
    rng = np.random.default_rng(1)
    for shape in ((5, 10, 3), (10, 5, 3)):
        picture = rng.integers(0, 256, shape).astype(np.uint8)
        picture[2, 2] = MEAN_COLOUR
        frames = np.repeat(fit(picture, 10)[None, None], 20, axis=0)
        _, keys = pool(20)
        done = np.asarray(run(frames, keys, AugmentConfig(flip=0.0)))
        padding = np.zeros((10, 10), bool)
        padding[:2] = padding[-3:] = True
        padding = padding if shape[0] == 5 else padding.T
        assert (frames[0, 0][padding] == MEAN_COLOUR).all()
        assert (done[:, 0, padding] == MEAN_COLOUR).all()
        assert (done[:, 0, ~padding] != frames[:, 0, ~padding]).any(axis=(1, 2)).all()
        inside = (frames[0, 0] == MEAN_COLOUR).all(axis=-1) & ~padding
        assert inside.any()
        assert (done[:, 0, inside] != frames[:, 0, inside]).any()


@pytest.mark.parametrize(("name", "value"), [("flip", 1.5), ("hue", 0.6), ("contrast", -0.1)])
def test_nonsense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a number from 0 to"):
        AugmentConfig(**{name: value})
