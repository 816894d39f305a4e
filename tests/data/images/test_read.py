"""An image becomes a square with the same proportions, and the rest has the mean colour."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.images import read
from flamingo_jax.data.images.read import MEAN_COLOUR, ImageInfo, decode, encode_png, fit, probe
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
    assert (square[~inside] == MEAN_COLOUR).all()
    rows, columns = np.nonzero(inside)
    for places in (rows, columns):  # the image is in the middle
        assert abs((places.min() + places.max()) - 11) <= 1
    np.testing.assert_array_equal(fit(image, 12), square)


def test_large_jpeg_is_close_to_its_exact_reduction():
    """Decoding at an eighth of the size differs only by its filters: 4 grey levels on a ramp."""
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
    black_above_white = np.repeat(np.array([0, 255], np.uint8), 8 * 8 * 3).reshape(16, 8, 3)
    image = PIL.Image.fromarray(black_above_white)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    square = decode(saved(image.resize((16, 16)), "JPEG", exif=exif), 16)
    assert square[:4].mean() > 200
    assert square[-4:].mean() < 50


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_damaged_images_are_corrupt_and_say_why(file_format):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    good = saved(PIL.Image.fromarray(noise), file_format)
    for damaged, reason in (
        (good[: len(good) // 2], "truncated_image"),
        (good[:40], "truncated_image"),
        (good[2:], "not_an_image"),
        (b"", "empty_image"),
        (b"<html>not found</html>", "not_an_image"),
    ):
        with pytest.raises(CorruptRecord) as found:
            decode(damaged, 32)
        assert found.value.reason == reason, len(damaged)


def test_a_jpeg_with_a_harmless_flaw_is_read():
    """Strict decoders reject bytes between two markers, browsers and PIL accept them."""
    good = saved(PIL.Image.fromarray(smooth(64, 48)), "JPEG", quality=95)
    flawed = good[:-2] + b"\x00\x00\x00" + good[-2:]
    np.testing.assert_allclose(decode(flawed, 32).astype(int), decode(good, 32).astype(int), atol=4)


def claims(width: int, height: int) -> bytes:
    """A PNG with this size in its header, and hardly any pixels."""
    header = b"IHDR" + struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# Sizes above our limit, above the limit of PIL's warning, and above that of PIL's error.
@pytest.mark.parametrize("side", [9_000, 10_000, 12_000, 50_000])
def test_bombs_are_refused_before_anything_is_decoded(side, monkeypatch):
    monkeypatch.setattr(PIL.Image.Image, "load", None)
    for function in (probe, lambda encoded: decode(encoded, 8)):
        with pytest.raises(CorruptRecord, match="large|pixels, more than") as found:
            function(claims(side, side))
        assert found.value.reason == "image_too_large"


def test_a_jpeg_of_very_many_scans_is_refused():
    good = saved(PIL.Image.fromarray(smooth(16, 16)), "JPEG", progressive=True)
    assert decode(good, 16).shape == (16, 16, 3)
    scan = good.index(b"\xff\xda")
    many = good[:scan] + good[scan:-2] * read.MAX_SCANS + good[-2:]
    with pytest.raises(CorruptRecord, match="more than 100 scans") as found:
        decode(many, 16)
    assert found.value.reason == "image_too_large"


@given(st.binary(max_size=64))
def test_any_bytes_are_an_image_or_corrupt(content):
    heads = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 ")
    reasons = ("empty_image", "not_an_image", "truncated_image", "image_too_large")
    for head in (*heads, b"II*\0", b"BM"):
        try:
            decode(head + content, 4)
        except CorruptRecord as error:
            assert error.reason in reasons


def smooth(width: int, height: int) -> np.ndarray:
    """An image without hard edges: all ways to reduce it have almost the same result."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([40 + 150 * x, 220 - 150 * y, 60 + 70 * (x + y)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("PPM", {}),
    ],
)
@pytest.mark.parametrize(
    "size", [(64, 48), (100, 75), (48, 200), (320, 240), (1000, 400), (33, 17)]
)
def test_all_formats_give_the_same(file_format, options, size):
    """For a JPEG, which is decoded at reduced size, within the documented tolerance; else exact."""
    image = smooth(*size)
    encoded = saved(PIL.Image.fromarray(image), file_format, **options)
    whole = np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))
    tolerance = 4 if file_format == "JPEG" else 0
    np.testing.assert_allclose(
        decode(encoded, 64).astype(int), fit(whole, 64).astype(int), atol=tolerance
    )
    assert probe(encoded) == ImageInfo(*size, file_format)


def cmyk(image: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(image).convert("CMYK")


def test_cmyk_jpeg():
    image = smooth(64, 48)
    np.testing.assert_allclose(
        decode(saved(cmyk(image), "JPEG", quality=95), 64), fit(image, 64), atol=6
    )


def test_grey_jpeg():
    image = smooth(64, 48)[..., 0]
    grey = decode(saved(PIL.Image.fromarray(image), "JPEG", quality=95), 64)[8:56].astype(int)
    np.testing.assert_allclose(grey, np.repeat(image[..., None], 3, axis=-1), atol=3)


def test_16_bits_are_scaled_not_cut_off():
    ramp = np.linspace(0, 0xFFFF, 64 * 64).astype(np.uint16).reshape(64, 64)
    for file_format in ("PNG", "TIFF", "PPM"):
        found = decode(saved(PIL.Image.fromarray(ramp), file_format), 64).astype(int)
        np.testing.assert_allclose(found[..., 1], ramp / 257, atol=1)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(file_format):
    frames = [
        PIL.Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0))
    ]
    animated = saved(frames[0], file_format, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(animated, 8)[4, 4].astype(int), (255, 0, 0), atol=3)


@pytest.mark.parametrize("file_format", ["GIF", "PNG"])
def test_a_palette_with_a_transparent_colour(file_format):
    image = PIL.Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    square = decode(saved(image, file_format, transparency=1), 8)
    assert tuple(square[0, 0]) == (255, 0, 0)
    assert tuple(square[4, 4]) == MEAN_COLOUR


def test_other_formats_are_no_images():
    """PIL would start another program for PostScript."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for content in (postscript, saved(PIL.Image.new("RGB", (8, 8)), "PCX")):
        with pytest.raises(CorruptRecord) as found:
            decode(content, 8)
        assert found.value.reason == "not_an_image"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_camera(file_format, orientation):
    image = PIL.Image.fromarray(smooth(64, 48))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    encoded = saved(image, file_format, exif=exif)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded))).convert("RGB")
    np.testing.assert_allclose(
        decode(encoded, 32).astype(int), fit(np.asarray(upright), 32).astype(int), atol=4
    )
    assert probe(encoded) == ImageInfo(*upright.size, file_format)


def test_the_message_for_unknown_bytes_is_the_same_in_every_run():
    with pytest.raises(CorruptRecord, match="begins with b'<html>40'") as error:
        probe(b"<html>404</html>")
    assert "object at 0x" not in str(error.value)
