"""Imported encoders get the pixels that their own processors make, also behind transparency.

The processors run as they are installed; only their normalisation is left out. Squares are within 2
of 255: our crop resizes the middle alone, and rounds once. Tiles are the same numbers.
"""

import io

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.data.images import colours
from flamingo_jax.data.images.read import decode
from flamingo_jax.data.images.tiles import canvas, cut
from flamingo_jax.inference.visuals import load_frames

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


def _of_size(width, height):
    coarse = PIL.Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
    return coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)


RNG = np.random.default_rng(2)
# Those that are shrunk, enlarged, and left; one pixel wide; at the border between arrangements.
SIZES = [
    (90, 40), (40, 90), (20, 20), (32, 32), (64, 64), (65, 64), (200, 190), (33, 10), (10, 33),
    (128, 32), (32, 128), (127, 33), (300, 20), (1, 500), (500, 1), (96, 33), (1000, 501),
    *RNG.integers(1, 300, (60, 2)).tolist(),
]  # fmt: skip


@pytest.fixture(scope="module")
def mllama():
    size = {"height": SIZE, "width": SIZE}
    return transformers.MllamaImageProcessorPil(do_normalize=False, do_rescale=False, size=size)


@pytest.mark.parametrize("max_tiles", [1, 4, 6])
def test_tiles_and_arrangements_are_those_of_transformers(mllama, max_tiles):
    """Exactly, pixels and numbers, for images of many shapes."""
    pictures = [_of_size(*size) for size in SIZES]
    found = mllama([[each] for each in pictures], max_image_tiles=max_tiles, return_tensors="np")
    for row, picture in enumerate(pictures):
        pixels, number = cut(canvas(picture, SIZE, max_tiles), SIZE, max_tiles)
        assert number == found["aspect_ratio_ids"][row, 0], picture.size
        assert found["aspect_ratio_mask"][row, 0].tolist() == [
            int(tile < len(pixels)) for tile in range(max_tiles)
        ]
        expected = found["pixel_values"][row, 0, : len(pixels)].transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(pixels, expected, err_msg=str(picture.size))


@pytest.mark.parametrize("kind", FILES)
def test_tiles_of_files_are_those_of_transformers(mllama, kind):
    """White is behind transparency. An array of pixels gives the same tiles as its file."""
    found = mllama(_opened(FILES[kind]), max_image_tiles=4, return_tensors="np")
    frame = load_frames(FILES[kind], SIZE, background="white", max_tiles=4)[0]
    pixels, number = cut(frame, SIZE, 4)
    assert number == found["aspect_ratio_ids"][0, 0]
    expected = found["pixel_values"][0, 0, : len(pixels)].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(pixels, expected)
    array = np.asarray(colours.to_rgb_or_rgba(_opened(FILES[kind])))
    again = load_frames(array, SIZE, background="white", max_tiles=4)[0]
    np.testing.assert_array_equal(again, frame)
    np.testing.assert_array_equal(load_frames(frame, SIZE, max_tiles=4)[0], frame)
