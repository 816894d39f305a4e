"""Shrinks an image by a small factor, in integers: the last step after decoding a JPEG at n/8.

    uint8[h, w, 4] --mix rows--> [h', w, 4] --transpose--> [w, h', 4]
                   --mix rows--> [w', h', 4] --transpose--> [h', w', 3]

A new row is the linear interpolation of the two nearest rows. This is good enough if a side loses
less than half of its pixels, because the decoder has filtered before. Whole rows are mixed with
integers of 16 bits: the result is the same on every machine, and this is about twice as fast as
PIL's resize. A fourth, unused byte makes a pixel one word, so that the transpositions are cheap.
"""

import functools
import math
import threading

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MOST = 1.5  # largest ratio of old to new size

_scratch = threading.local()


def shrink(pixels: UInt8[np.ndarray, "h w 4"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Shrinks an image.

    Args:
        pixels: uint8[h, w, 4]; the fourth channel is ignored.
        size: (width, height) of the result. Each is at most that of the image, and at least
            1 / MOST of it.

    Returns:
        uint8[height, width, 3], read-only.
    """
    width, height = size
    rows = _mixed(pixels.reshape(len(pixels), -1), height)
    columns = _mixed(_transposed(rows), width)
    image = Image.frombuffer("RGBX", size, _transposed(columns), "raw", "RGBX", 0, 1)
    return np.frombuffer(image.tobytes("raw", "RGB"), np.uint8).reshape(height, width, 3)


def _transposed(rows: np.ndarray) -> np.ndarray:
    """Transposes pixels, uint8[n, 4 m] to uint8[m, 4 n]."""
    return np.ascontiguousarray(rows.view(np.uint32).T).view(np.uint8)


def _mixed(rows: np.ndarray, number: int) -> np.ndarray:
    """Interpolates uint8[n, k] to uint8[number, k]; each row is a mix of the two nearest."""
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
    """Returns an array that the next call with the same name in this thread overwrites.

    New memory for each image would cost more time than its pixels.
    """
    size = math.prod(shape)
    known = getattr(_scratch, name, None)
    if known is None or len(known) < size:
        known = np.empty(size, dtype)
        setattr(_scratch, name, known)
    return known[:size].reshape(shape)


@functools.lru_cache(maxsize=1024)
def _taps(stored: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the two of `stored` rows that are nearest to each of `number` new rows.

    Also returns the weights of both, uint16[number, 1]; the sum of the two is 256.
    """
    place = (np.arange(number) + 0.5) * (stored / number) - 0.5
    above = np.clip(np.floor(place).astype(np.int64), 0, max(stored - 2, 0))
    share = np.clip(np.round((place - above) * 256), 0, 256).astype(np.uint16)[:, None]
    return above, np.minimum(above + 1, stored - 1), np.uint16(256) - share, share
