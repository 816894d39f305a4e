"""Pictures of the synthetic world: scenes of one or two coloured shapes, drawn from a seed.

    seed, pool, block -> attributes int[M, O, 3] -> places, radii, shades -> signed distances
                      -> uint8[M, 32, 32, 3] -> PNG

A shape is a signed distance function, so that its edge is anti-aliased by clipping the distance to
one pixel. An object has a colour, a shape and a size. Eight of the 64 pairs of colour and shape are
held out: they are drawn only for the pools named `held_out`, and are in no other picture or text.
Every picture is a pure function of (seed, pool, index). Pictures are drawn in blocks of `BLOCK`, so
that the memory does not grow with their number. Texts about the pictures are in `world/text.py`,
pages in `world/pages.py`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from flamingo_jax.core.seeds import generator

IMAGE_SIZE = 32  # pixels
BLOCK = 256  # pictures that are drawn at once
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring", "bar", "ex")
SIZES = ("small", "big")
DIRECTIONS = ("left", "right", "up", "down")
ATTRIBUTES = ("colour", "shape", "size")  # the order of the last axis of `attributes`
VALUES = (COLOURS, SHAPES, SIZES)
COLOUR, SHAPE, SIZE = range(3)

_RGB = np.array([
    (0.90, 0.12, 0.12), (0.10, 0.75, 0.15), (0.15, 0.25, 0.95), (0.95, 0.90, 0.10),
    (0.60, 0.15, 0.75), (0.10, 0.85, 0.90), (1.00, 0.55, 0.05), (0.97, 0.97, 0.97),
], np.float32)  # fmt: skip
_RADIUS = np.array([4.0, 7.0], np.float32)  # pixels, for small and big
_RADIUS_JITTER, _SHADE_JITTER, _BACKGROUND, _NOISE = 0.07, 0.05, 0.3, 0.03


def is_held_out(colour: int, shape: int) -> bool:
    """Returns True if a pair of colour and shape is held out: one shape for each colour."""
    return (shape - colour) % len(SHAPES) == 3


HELD_OUT = tuple(
    (c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES)) if is_held_out(c, s)
)
SEEN = tuple(
    (c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES)) if not is_held_out(c, s)
)


@dataclasses.dataclass(frozen=True)
class Pool:
    """A source of pictures, with a random stream for every seed.

    Attributes:
      num_objects: objects in each picture, one or two.
      held_out: True: all objects have held-out pairs of colour and shape. False: no object has.
    """

    num_objects: int
    held_out: bool = False


POOLS = {
    "train_one": Pool(1),
    "train_two": Pool(2),
    "test_one": Pool(1),
    "test_two": Pool(2),
    "test_held_out": Pool(1, held_out=True),
}


def draw_attributes(rng: np.random.Generator, num: int, pool: Pool) -> Int[np.ndarray, "M O 3"]:
    """Draws the objects of `num` pictures, uniformly over the pool's pairs of colour and shape.

    Two objects of a picture differ in colour and in shape.
    """
    pairs = np.array(HELD_OUT if pool.held_out else SEEN)
    chosen = pairs[rng.integers(len(pairs), size=(num, pool.num_objects))]
    if pool.num_objects == 2:
        while (clash := (chosen[:, 0] == chosen[:, 1]).any(axis=-1)).any():
            chosen[clash, 1] = pairs[rng.integers(len(pairs), size=clash.sum())]
    size = rng.integers(len(SIZES), size=(num, pool.num_objects, 1))
    return np.concatenate([chosen, size], axis=-1)


def render(
    rng: np.random.Generator, attributes: Int[np.ndarray, "M O 3"]
) -> UInt8[np.ndarray, "M H W 3"]:
    """Paints pictures of the given objects.

    Places, shades, the dark background and the noise are random.

    Args:
      rng: draws all that the attributes do not define.
      attributes: indices into COLOURS, SHAPES and SIZES of one or two objects. Two objects are
          placed in different halves of the picture.
    """
    radius = _radii(rng, attributes)
    return _paint(rng, attributes, _places(rng, radius), radius, *_shades(rng, attributes))


def _radii(
    rng: np.random.Generator, attributes: Int[np.ndarray, "M O 3"]
) -> Float[np.ndarray, "M O"]:
    jitter = rng.uniform(1 - _RADIUS_JITTER, 1 + _RADIUS_JITTER, attributes.shape[:2])
    return (_RADIUS[attributes[..., SIZE]] * jitter).astype(np.float32)


def _shades(
    rng: np.random.Generator, attributes: Int[np.ndarray, "M O 3"]
) -> tuple[Float[np.ndarray, "M O 3"], Float[np.ndarray, "M"]]:
    """Returns red, green and blue of each object, and the grey of each background."""
    jitter = rng.uniform(-_SHADE_JITTER, _SHADE_JITTER, attributes.shape).astype(np.float32)
    shade = _RGB[attributes[..., COLOUR]] + jitter
    return shade, rng.uniform(0, _BACKGROUND, len(attributes)).astype(np.float32)


def _places(
    rng: np.random.Generator, radius: Float[np.ndarray, "M O"]
) -> Float[np.ndarray, "M O 2"]:
    """Draws centres (x, y), with the whole object in the picture.

    Two objects are next to each other, or one above the other.
    """
    num, num_objects = radius.shape
    low = np.repeat(radius[..., None] + 0.5, 2, axis=-1)
    high = IMAGE_SIZE - low
    if num_objects == 2:
        axis = rng.integers(2, size=num)
        first = rng.integers(2, size=num)  # the object in the left or upper half
        one, other = (np.arange(num), first, axis), (np.arange(num), 1 - first, axis)
        high[one] = np.maximum(high[one] - IMAGE_SIZE / 2, low[one])
        low[other] = np.minimum(low[other] + IMAGE_SIZE / 2, high[other])
    return low + (high - low) * rng.random((num, num_objects, 2), dtype=np.float32)


def _paint(
    rng: np.random.Generator,
    attributes: Int[np.ndarray, "M O 3"],
    centre: Float[np.ndarray, "M O 2"],
    radius: Float[np.ndarray, "M O"],
    shade: Float[np.ndarray, "M O 3"],
    grey: Float[np.ndarray, "M"],
) -> UInt8[np.ndarray, "M H W 3"]:
    """Paints anti-aliased objects on a grey background, adds noise, and rounds to bytes."""
    num, num_objects, _ = attributes.shape
    noise = _NOISE * rng.standard_normal((num, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    grey = grey[:, None, None, None]
    image = grey + noise
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    for k in range(num_objects):
        for shape in range(len(SHAPES)):
            rows = np.flatnonzero(attributes[:, k, SHAPE] == shape)
            x = pixel[None, None, :] - centre[rows, k, 0, None, None]
            y = pixel[None, :, None] - centre[rows, k, 1, None, None]
            distance = _DISTANCES[shape](x, y, radius[rows, k, None, None])
            cover = np.clip(0.5 - distance, 0, 1)[..., None]
            image[rows] += cover * (shade[rows, k, None, None, :] - grey[rows])
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


# (x, y, radius) -> pixels to the edge, negative inside
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _circle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - r


def _square(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85 * r


def _diamond(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return (np.abs(x) + np.abs(y) - r) * np.float32(0.5**0.5)


def _triangle(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Equilateral, one corner at the top (y grows downwards), inscribed radius 0.55 r, centred."""
    up = 0.275 * r - y
    return np.maximum(-up, np.float32(0.75**0.5) * np.abs(x) + 0.5 * up) - 0.55 * r


def _cross(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.minimum(_bar(x, y, r), _bar(y, x, r))


def _ring(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.75 * r) - 0.25 * r


def _bar(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) - r, np.abs(y) - 0.32 * r)


def _ex(x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    turn = np.float32(0.5**0.5)
    return _cross((x + y) * turn, (x - y) * turn, r)


# In the order of SHAPES.
_DISTANCES: tuple[Distance, ...] = (
    _circle, _square, _diamond, _triangle, _cross, _ring, _bar, _ex,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures and their objects.

    Attributes:
      attributes: int[M, O, 3] indices into COLOURS, SHAPES and SIZES of each object.
      images: uint8[M, 32, 32, 3].
    """

    attributes: Int[np.ndarray, "M O 3"]
    images: UInt8[np.ndarray, "M H W 3"]


def scenes(seed: int, pool: str, block: int) -> Scenes:
    """Returns pictures `block * BLOCK` to `(block + 1) * BLOCK - 1` of a pool."""
    rng = generator(seed, pool, block)
    attributes = draw_attributes(rng, BLOCK, POOLS[pool])
    return Scenes(attributes, render(rng, attributes))


def iterate(seed: int, pool: str, num: int) -> Iterator[tuple[Int[np.ndarray, "O 3"], bytes]]:
    """Yields the attributes and the PNG bytes of the first `num` pictures of a pool.

    Only one block is in memory at a time.
    """
    for block in range(-(-num // BLOCK)):
        drawn = scenes(seed, pool, block)
        for i in range(min(BLOCK, num - block * BLOCK)):
            yield drawn.attributes[i], encode_png(drawn.images[i])


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A video of a shape that moves from one edge of the picture to the other.

    Attributes:
      attributes: int[3] indices into COLOURS, SHAPES and SIZES.
      direction: one of DIRECTIONS.
      frames: uint8[F, 32, 32, 3].
    """

    attributes: Int[np.ndarray, "3"]
    direction: str
    frames: UInt8[np.ndarray, "F H W 3"]


def video(seed: int, index: int, num_frames: int) -> Clip:
    """Returns video `index` of a seed.

    The object keeps its shade and its size. Each frame has other noise.
    """
    rng = generator(seed, "video", index)
    attributes = np.repeat(draw_attributes(rng, 1, Pool(1)), num_frames, axis=0)
    radius, (shade, grey) = _radii(rng, attributes[:1]), _shades(rng, attributes[:1])
    direction = DIRECTIONS[rng.integers(len(DIRECTIONS))]
    low, high = float(radius[0, 0]) + 0.5, IMAGE_SIZE - float(radius[0, 0]) - 0.5
    first, last = (high, low) if direction in ("left", "up") else (low, high)
    along = np.linspace(first, last, num_frames)
    across = np.full(num_frames, rng.uniform(low, high))
    x, y = (along, across) if direction in ("left", "right") else (across, along)
    centre = np.stack([x, y], axis=-1)[:, None].astype(np.float32)
    repeated = (np.repeat(array, num_frames, axis=0) for array in (radius, shade, grey))
    frames = _paint(rng, attributes, centre, *repeated)
    return Clip(attributes[0, 0], direction, frames)


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encodes a picture as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
