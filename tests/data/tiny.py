"""The contents of the tiny datasets that conftest writes."""

import io

import numpy as np
import PIL.Image

from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.schema import InterleavedPage

SIZE = 8
NUM_PAGES, NUM_PAIRS, NUM_VIDEOS, NUM_DOCUMENTS = 11, 14, 5, 17
CORRUPT = 3  # the pair whose image is cut off


def solid(value: int, size: int = SIZE) -> np.ndarray:
    """An image in one grey, which identifies it in a test."""
    return np.full((size, size, 3), value, np.uint8)


def jpeg(image: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format="JPEG", quality=95, **options)
    return buffer.getvalue()


def page(number: int) -> InterleavedPage:
    """Page k has k % 4 images, of grey 10 * k + image; every third page starts with text."""
    parts: list[str | bytes] = [f"w{number} intro"] if number % 3 == 0 else []
    for image in range(number % 4):
        parts += [encode_png(solid(10 * number + image)), f"w{number} i{image}"]
    return InterleavedPage(tuple(parts or ["w0 only text"]), metadata=f'{{"number": {number}}}')
