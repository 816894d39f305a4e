"""Cuts an image into square tiles, so that its shape and its details are kept (Llama 3.2 Vision).

    an image of 900 x 400 pixels, tiles of 560, at most 4
      -> 1 row of 2 tiles, the arrangement that it fills best
      -> resized to 1120 x 497, black below it
      -> tiles [2 560 560 3], row by row; arrangement number 2

The rules are those of transformers' MllamaImageProcessor: the sizes, PIL's bilinear filter on the
image at its full size, and black where an arrangement is larger than the image.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flamingo_jax.data.config import Background
from flamingo_jax.data.images import read


@functools.cache
def arrangements(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Returns all (rows, columns) of at most so many tiles; number 1 is the first, (1, 1).

    Of 4 tiles they are (1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1) and (4, 1).
    """
    sides = range(1, max_tiles + 1)
    return tuple((h, w) for h in sides for w in sides if h * w <= max_tiles)


def decode(
    encoded: bytes, size: int, max_tiles: int, background: Background = "mean"
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image of any of `read.FORMATS` into its `canvas`; read-only.

    Args:
        encoded: the bytes of the file.
        size: S, side of a tile, in pixels.
        max_tiles: most tiles.
        background: what is behind transparent pixels.

    Raises:
        CorruptRecord: as in `read.decode_inner`.
    """
    pixels = canvas(read.whole(encoded, background), size, max_tiles)
    pixels.flags.writeable = False
    return pixels


def canvas(image: Image.Image, size: int, max_tiles: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an RGB image on the tiles that it is given, before it is cut.

    The canvas of a canvas is the same.

    Args:
        image: upright.
        size: S, side of a tile, in pixels.
        max_tiles: most tiles.

    Returns:
        uint8[rows * S, columns * S, 3]: the image in the upper left corner, black around it.
    """
    rows, columns = best_arrangement(image.size, size, max_tiles)
    inner = _fitted(image.size, (columns * size, rows * size), size)
    pixels = np.zeros((rows * size, columns * size, 3), np.uint8)
    resized = image if image.size == inner else image.resize(inner, Image.Resampling.BILINEAR)
    pixels[: inner[1], : inner[0]] = np.asarray(resized)
    return pixels


def cut(
    pixels: UInt8[np.ndarray, "h w 3"], size: int, max_tiles: int
) -> tuple[UInt8[np.ndarray, "n S S 3"], int]:
    """Cuts a canvas into its tiles.

    Args:
        pixels: of `canvas`.
        size: S.
        max_tiles: as for `canvas`.

    Returns:
        (tiles, row by row; number of their arrangement among `arrangements`, from 1).
    """
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    tiles = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    number = 1 + arrangements(max_tiles).index((rows, columns))
    return tiles.reshape(-1, size, size, 3), number


def best_arrangement(image: tuple[int, int], size: int, max_tiles: int) -> tuple[int, int]:
    """Returns the (rows, columns) of tiles for an image.

    Of those that hold the whole image, at its size or enlarged, it is the one that enlarges it
    least; if there is none, the one that shrinks it least; of several, the one of fewest tiles.

    Args:
        image: width and height in pixels.
        size: side of a tile.
        max_tiles: most tiles.
    """

    def scale(shape: tuple[int, int]) -> float:
        rows, columns = shape
        return min(columns * size / image[0], rows * size / image[1])

    shapes = arrangements(max_tiles)
    enlarged = [each for each in map(scale, shapes) if each >= 1]
    best = min(enlarged) if enlarged else max(map(scale, shapes))
    return min((each for each in shapes if scale(each) == best), key=math.prod)


def _fitted(image: tuple[int, int], canvas: tuple[int, int], size: int) -> tuple[int, int]:
    """Returns (width, height) of an image on its canvas: enlarged to one tile at most."""
    goals = [min(max(side, size), most) for side, most in zip(image, canvas, strict=True)]
    by_width, by_height = (goal / side for goal, side in zip(goals, image, strict=True))
    if by_width < by_height:
        return goals[0], min(math.floor(image[1] * by_width) or 1, goals[1])
    return min(math.floor(image[0] * by_height) or 1, goals[0]), goals[1]
