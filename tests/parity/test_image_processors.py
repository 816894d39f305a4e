"""Imported encoders get the pixels that their own processors make, also behind transparency.

The processors run as they are installed; only their normalisation is left out. Within 2 of 255: our
crop resizes the middle alone, and rounds once.
"""

import io

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.data.images.read import decode

transformers = pytest.importorskip("transformers")

SIZE = 32


def _picture(kind):
    """A picture with a hole, which hides other colours."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 7, 4), np.uint8))
    clear = coarse.resize((70, 50), PIL.Image.Resampling.BICUBIC)
    if kind == "P":
        return clear.convert("RGB").quantize(16), {"transparency": bytes(range(0, 256, 16))}
    return clear.convert(kind), {}


def _files():
    for kind in ("RGBA", "LA", "P", "RGB", "L"):
        image, options = _picture(kind)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        yield kind, buffer.getvalue()


FILES = dict(_files())


def _opened(encoded):
    image = PIL.Image.open(io.BytesIO(encoded))
    image.load()
    return image


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("name", "options", "image_fit"),
    [
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": SIZE}, "crop_size": SIZE}, "crop"),
        ("IdeficsImageProcessorPil", {"image_size": SIZE}, "squash"),
    ],
)
def test_transformers(kind, name, options, image_fit):
    processor = getattr(transformers, name)(do_normalize=False, do_rescale=False, **options)
    found = processor(_opened(FILES[kind]), return_tensors="np")
    expected = np.asarray(found["pixel_values"] if "CLIP" in name else found)[0].transpose(1, 2, 0)
    pixels = decode(FILES[kind], SIZE, image_fit, "white")
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=2)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", FILES)
def test_open_clip(kind):
    """Its transform begins with PIL's convert("RGB"); to run it takes torchvision."""
    converted = io.BytesIO()
    _opened(FILES[kind]).convert("RGB").save(converted, "PNG")
    found = decode(FILES[kind], SIZE, "crop", "none")
    np.testing.assert_array_equal(found, decode(converted.getvalue(), SIZE, "crop", "white"))
