"""Shrinks an image a little, in whole numbers.

The last step after a JPEG was decoded at n/8 of its size.

    uint8[h, w, 4]  --rows-->  [h', w, 4]  --transpose-->  [w, h', 4]  --rows-->  [w', h', 4]  --transpose-->  [h', w', 3]

Linear interpolation between the two nearest pixels, which is enough where less than half of the
pixels of a side go: the decoder has filtered before. Rows are mixed as a whole, with whole numbers
of 16 bits: the same on every machine, and about twice as fast as PIL's resize. A fourth, unused
byte makes a pixel one word, which is what makes the transpositions cheap.
"""

import functools
import math
import threading

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MOST = 1.5  # largest ratio of sizes

_scratch = threading.local()


def shrink(pixels: UInt8[np.ndarray, "h w 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Shrinks an image.

    Args:
        pixels: uint8[h, w, 4]; the fourth channel is not looked at.
        size: (width, height) of the result; each at most that of the image and at least 1 / MOST of
            it.

    Returns:
        uint8[height, width, 3], not to be written to.
    """
    width, height = size
    rows = _mixed(pixels.reshape(len(pixels), -1), height)
    columns = _mixed(_transposed(rows), width)
    packed = Image.frombuffer("RGBX", size, _transposed(columns), "raw", "RGBX", 0, 1).tobytes(
        "raw", "RGB"
    )
    return np.frombuffer(packed, np.uint8).reshape(height, width, 3)


def _transposed(rows: np.ndarray) -> np.ndarray:
    """uint8[n, 4 m] pixels to uint8[m, 4 n]."""
    return np.ascontiguousarray(rows.view(np.uint32).T).view(np.uint8)


def _mixed(rows: np.ndarray, number: int) -> np.ndarray:
    """Mixes uint8[n, k] to uint8[number, k], each row from the two nearest."""
    if number == len(rows):
        return rows
    above, below, share_above, share_below = _taps(len(rows), number)
    shape = (number, rows.shape[1])
    chosen = scratch("chosen", np.uint8, shape)
    mixed, other = scratch("mixed", np.uint16, shape), scratch("other", np.uint16, shape)
    for result, which, share in ((mixed, above, share_above), (other, below, share_below)):
        np.copyto(result, np.take(rows, which, axis=0, out=chosen, mode="clip"))
        result *= share
    mixed += other
    mixed += np.uint16(128)
    mixed >>= 8
    return mixed.astype(np.uint8)


def scratch(name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array that this thread's next call with the same name overwrites.

    Fresh memory for each image would cost more than its pixels.
    """
    size = math.prod(shape)
    known = getattr(_scratch, name, None)
    if known is None or len(known) < size:
        known = np.empty(size, dtype)
        setattr(_scratch, name, known)
    return known[:size].reshape(shape)


@functools.lru_cache(maxsize=1024)
def _taps(stored: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which two of `stored` rows each of `number` rows lies between, and uint16[number, 1] shares of both in 256."""
    place = (np.arange(number) + 0.5) * (stored / number) - 0.5
    above = np.clip(np.floor(place).astype(np.int64), 0, max(stored - 2, 0))
    share = np.clip(np.round((place - above) * 256), 0, 256).astype(np.uint16)[:, None]
    return above, np.minimum(above + 1, stored - 1), np.uint16(256) - share, share
