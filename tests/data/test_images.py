"""Any image becomes a square: aspect ratio kept, the rest in the mean colour."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data import images
from flamingo_jax.data.images import MEAN_COLOUR, decode, encode_png, fit
from flamingo_jax.data.schema import CorruptRecord


def saved(image: PIL.Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def test_square_of_the_right_size_is_unchanged():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(decode(encode_png(image), 8), image)
    np.testing.assert_array_equal(fit(image, 8), image)


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_longer_side_fills_and_the_rest_is_mean(height, width):
    image = np.full((height, width, 3), 200, np.uint8)
    square = decode(encode_png(image), 12)
    inside = (square == 200).all(axis=-1)
    long, short = max(height, width), min(height, width)
    assert inside.sum() == 12 * max(1, round(12 * short / long))
    np.testing.assert_array_equal(square[~inside], np.broadcast_to(MEAN_COLOUR, square[~inside].shape))
    rows, columns = np.nonzero(inside)
    for places in (rows, columns):  # in the middle
        assert abs((places.min() + places.max()) - 11) <= 1
    np.testing.assert_array_equal(fit(image, 12), square)


def test_large_jpeg_is_close_to_its_exact_reduction():
    """Decoding at an eighth of the size differs from the full way only by filters: a ramp stays within 4 grey levels."""
    ramp = np.repeat(np.linspace(20, 230, 256).astype(np.uint8)[None], 256, axis=0)
    image = np.repeat(ramp[..., None], 3, axis=-1)
    square = decode(saved(PIL.Image.fromarray(image), "JPEG", quality=98), 16).astype(int)
    expected = image.reshape(16, 16, 16, 16, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(square, expected, atol=4)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_colour_models(mode):
    file_format = "TIFF" if mode == "CMYK" else "PNG"
    white = PIL.Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert (decode(saved(white, file_format), 4) == 255).all()


def test_transparent_pixels_are_mean():
    image = PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    square = decode(saved(image), 4)
    assert tuple(square[0, 0]) == (255, 0, 0)
    assert tuple(square[3, 3]) == MEAN_COLOUR


def test_orientation_of_a_camera_is_applied():
    image = PIL.Image.fromarray(
        np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 255)]).astype(np.uint8).reshape(16, 8, 3)
    )
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    square = decode(saved(image.resize((16, 16)), "JPEG", exif=exif), 16)
    assert square[:4].mean() > 200
    assert square[-4:].mean() < 50


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:30], lambda b: b"", lambda b: b"not an image"]
)
def test_damaged_images_are_corrupt(damage):
    good = encode_png(np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8))
    with pytest.raises(CorruptRecord, match="cannot be decoded"):
        decode(damage(good), 32)


def test_bombs_are_corrupt(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(CorruptRecord, match="10 x 10 pixels, more than 99"):
        decode(encode_png(np.zeros((10, 10, 3), np.uint8)), 8)
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + bytes([8, 2, 0, 0, 0])
    claims = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(CorruptRecord, match="cannot be decoded"):
        decode(claims, 8)
