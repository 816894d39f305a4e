"""Square images for models that were not trained on padding: CLIP's crop, IDEFICS' squash."""

import functools
import io

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.data.config import DataConfig
from flamingo_jax.data.images.read import decode, encode_png, fit
from flamingo_jax.data.sources import EncodedImages
from flamingo_jax.inference.visuals import Image, load_frames

SIZES = [(64, 48), (48, 64), (97, 33), (31, 70), (20, 20), (17, 11), (32, 32), (300, 7)]
BICUBIC = PIL.Image.Resampling.BICUBIC


def _picture(width, height):
    rng = np.random.default_rng(width)
    coarse = PIL.Image.fromarray(
        rng.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3), np.uint8)
    )
    return np.asarray(coarse.resize((width, height), BICUBIC))


def _cropped(image, size):
    """CLIP's two steps: resizes the shorter side, then cuts out the middle, with Python's round."""
    height, width = image.shape[:2]
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    shape = (size, other) if width <= height else (other, size)
    scaled = PIL.Image.fromarray(image).resize(shape, BICUBIC)
    left, top = (round((side - size) / 2) for side in scaled.size)
    return np.asarray(scaled)[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [32, 33])
def test_crop_is_clips(shape, size):
    """Within 1 of 255, because only the middle is resized, with borders in single precision."""
    image = _picture(*shape)
    found, expected = fit(image, size, "crop"), _cropped(image, size)
    assert found.shape == expected.shape == (size, size, 3)
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
    np.testing.assert_array_equal(decode(encode_png(image), size, "crop"), found)


@pytest.mark.parametrize("shape", SIZES)
def test_squash_is_pils_bicubic(shape):
    image = _picture(*shape)
    expected = np.asarray(PIL.Image.fromarray(image).resize((32, 32), BICUBIC))
    np.testing.assert_array_equal(fit(image, 32, "squash"), expected)
    np.testing.assert_array_equal(decode(encode_png(image), 32, "squash"), expected)


def test_a_jpeg_is_decoded_at_full_size_first():
    """With padding, a JPEG is decoded at reduced size; features of imported models must not be."""
    encoded = io.BytesIO()
    PIL.Image.fromarray(_picture(640, 480)).save(encoded, "JPEG", quality=95)
    whole = np.asarray(PIL.Image.open(encoded).convert("RGB"))
    np.testing.assert_array_equal(decode(encoded.getvalue(), 48, "crop"), fit(whole, 48, "crop"))


def test_a_rotated_image_is_cropped_upright():
    image = _picture(40, 64)
    encoded, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6  # must be turned clockwise
    PIL.Image.fromarray(np.rot90(image)).save(encoded, "PNG", exif=exif)
    np.testing.assert_array_equal(decode(encoded.getvalue(), 16, "crop"), fit(image, 16, "crop"))


def test_a_very_long_image_takes_no_memory():
    """Resized as a whole it would have 32 x 2,560,000 pixels, 245 MB."""
    line = np.zeros((1, 80_000, 3), np.uint8)
    line[0, 40_000:] = 255
    square = fit(line, 32, "crop").astype(int)
    assert square.shape == (32, 32, 3)
    assert square[:, 0].max() < 16 and square[:, -1].min() > 239


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
def test_training_and_inference_use_the_same_pixels(image_fit, tmp_path):
    image = _picture(64, 48)
    (tmp_path / "image.png").write_bytes(encode_png(image))
    expected = fit(image, 32, image_fit)
    load = functools.partial(load_frames, image_size=32, image_fit=image_fit)
    file = Image(str(tmp_path / "image.png"))
    for visual in (image, PIL.Image.fromarray(image), encode_png(image), file):
        np.testing.assert_array_equal(load(visual), expected[None])
    np.testing.assert_array_equal(EncodedImages([encode_png(image)], 32, image_fit)[0], expected)


def test_an_export_stores_the_image_fit():
    config = functools.partial(DataConfig, "tokenizer", 320, {})
    assert config().preprocessing == {"image_size": 320}  # padded, as in older exports
    assert config(image_fit="crop").preprocessing == {"image_size": 320, "image_fit": "crop"}
