"""Shrinking in integers is linear interpolation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.images.shrink import MOST, shrink


def reference(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The same in floating point, one axis after the other, by numpy's interpolation."""
    result = pixels.astype(float)
    for axis, number in ((0, size[1]), (1, size[0])):
        stored = pixels.shape[axis]
        place = (np.arange(number) + 0.5) * stored / number - 0.5
        result = np.apply_along_axis(
            lambda line, at=place: np.interp(at, np.arange(len(line)), line), axis, result
        )
    return result


@given(width=st.integers(1, 30), height=st.integers(1, 30), data=st.data())
def test_shrinking_is_linear_interpolation(width, height, data):
    size = tuple(
        data.draw(st.integers(int(np.ceil(side / MOST)), side)) for side in (width, height)
    )
    rng = np.random.default_rng(width * height)
    pixels = rng.integers(0, 256, (height, width, 4)).astype(np.uint8)
    found = shrink(pixels, size)
    assert found.shape == (size[1], size[0], 3)
    # Rounding is half a level for each axis, and weights are exact to 1/256.
    np.testing.assert_allclose(found, reference(pixels, size)[..., :3], atol=1.6)


@pytest.mark.parametrize("value", [0, 255])
def test_the_ends_of_the_range_stay(value):
    pixels = np.full((9, 12, 4), value, np.uint8)
    assert (shrink(pixels, (10, 8)) == value).all()
