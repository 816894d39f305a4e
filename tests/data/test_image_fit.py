"""How an image becomes a square for a model that was not trained on padded ones.

CLIP's crop, IDEFICS' squash.
"""

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
    """Shorter side to size, then the middle.

    CLIP's own two steps, the second with the rounding that Python's round has.
    """
    height, width = image.shape[:2]
    short, long = min(width, height), max(width, height)
    other = int(size * long / short)
    scaled = PIL.Image.fromarray(image).resize(
        (size, other) if width <= height else (other, size), BICUBIC
    )
    left, top = (round((side - size) / 2) for side in scaled.size)
    return np.asarray(scaled)[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [32, 33])
def test_crop_is_clips(shape, size):
    """Within 1 of 255.

    Only what is left is resized here, at places that are rounded to single precision.
    """
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
    """The padded way decodes at a reduced size.

    Features of imported models must not depend on that.
    """
    encoded = io.BytesIO()
    PIL.Image.fromarray(_picture(640, 480)).save(encoded, "JPEG", quality=95)
    whole = np.asarray(PIL.Image.open(encoded).convert("RGB"))
    np.testing.assert_array_equal(decode(encoded.getvalue(), 48, "crop"), fit(whole, 48, "crop"))


def test_an_image_that_lies_on_its_side_is_cropped_upright():
    image = _picture(40, 64)
    encoded, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    PIL.Image.fromarray(np.rot90(image)).save(encoded, "PNG", exif=exif)
    np.testing.assert_array_equal(decode(encoded.getvalue(), 16, "crop"), fit(image, 16, "crop"))


def test_a_very_long_image_takes_no_memory():
    """Its shorter side at size would make it 32 x 2,560,000 pixels, 245 MB."""
    line = np.zeros((1, 80_000, 3), np.uint8)
    line[0, 40_000:] = 255
    square = fit(line, 32, "crop").astype(int)
    assert square.shape == (32, 32, 3)
    assert square[:, 0].max() < 16 and square[:, -1].min() > 239


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
def test_training_and_inference_see_the_same(image_fit, tmp_path):
    image = _picture(64, 48)
    (tmp_path / "image.png").write_bytes(encode_png(image))
    expected = fit(image, 32, image_fit)
    load = functools.partial(load_frames, image_size=32, image_fit=image_fit)
    for visual in (
        image,
        PIL.Image.fromarray(image),
        encode_png(image),
        Image(str(tmp_path / "image.png")),
    ):
        np.testing.assert_array_equal(load(visual), expected[None])
    np.testing.assert_array_equal(EncodedImages([encode_png(image)], 32, image_fit)[0], expected)


def test_an_export_says_how_its_images_were_brought_to_size():
    config = functools.partial(DataConfig, "tokenizer", 320, {})
    assert config().preprocessing == {"image_size": 320}  # padded, as in exports of before
    assert config(image_fit="crop").preprocessing == {"image_size": 320, "image_fit": "crop"}
