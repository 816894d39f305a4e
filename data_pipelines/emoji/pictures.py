"""Composes pictures: a drawing on a background, shifted, scaled and rotated by a seed.

    drawing RGBA [64, 64] -> rotated, scaled to 0.6 to 0.95 of the picture, at a random place
                          -> on a gradient of two random shades, with noise -> PNG [S, S, 3]

A picture is a pure function of (seed, concept, style, number).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from etils import epath
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError

from data_pipelines.emoji.concepts import THIRD_STYLE, Concept, EmojiError
from flamingo_jax.core.paths import regular
from flamingo_jax.core.seeds import generator
from flamingo_jax.world.scenes import encode_png

SIZE = 64  # pixels of a drawing
_SCALE = (0.6, 0.95)  # of the picture's side
_ROTATION = 15.0  # degrees, to both sides
_NOISE = 0.02  # standard deviation, of a range of 1


def picture(seed: int, concept: Concept, style: str, number: int, size: int) -> bytes:
    """Returns picture `number` of a drawing as PNG, uint8[size, size, 3].

    Raises:
      EmojiError: the drawing cannot be read.
    """
    rng = generator(seed, f"emoji/{concept.code}/{style}", number)
    shown = drawing(concept, style)
    side = round(float(rng.uniform(*_SCALE)) * size)
    angle = float(rng.uniform(-_ROTATION, _ROTATION))
    turned = shown.rotate(angle, Image.Resampling.BICUBIC).resize(
        (side, side), Image.Resampling.LANCZOS
    )
    canvas = Image.new("RGBA", (size, size))
    left, top = (int(place) for place in rng.integers(size - side + 1, size=2))
    canvas.paste(turned, (left, top))
    rgba = np.asarray(canvas, np.float32) / 255
    colour, alpha = rgba[..., :3], rgba[..., 3:]
    mixed = colour * alpha + _background(rng, size) * (1 - alpha)
    mixed += rng.normal(0, _NOISE, mixed.shape).astype(np.float32)
    return encode_png((mixed.clip(0, 1) * 255).round().astype(np.uint8))


def _background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "S S 3"]:
    """Returns a gradient between two colours, along a random direction."""
    first, second = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    place = np.cos(angle) * along[:, None] + np.sin(angle) * along[None]
    share = (place - place.min()) / (place.max() - place.min())
    return first + (second - first) * share[..., None].astype(np.float32)


def drawing(concept: Concept, style: str) -> Image.Image:
    """Returns the drawing of a concept in a style, RGBA [64, 64].

    Raises:
      EmojiError: it cannot be read, is not a PNG file of 64 x 64 pixels, or shows nothing.
    """
    return _read(concept.drawings[style], style == THIRD_STYLE)


@functools.lru_cache(maxsize=8192)  # 4,000 drawings of 16 KiB
def _read(path: epath.Path, is_svg: bool) -> Image.Image:
    try:
        data = regular(path).read_bytes()
        if is_svg:
            data = rasteriser()(data.decode())
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (SIZE, SIZE):
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels, expected {SIZE} x {SIZE}"
                )
            image.load()
            shown = image.convert("RGBA")
        if shown.getbbox() is None:
            raise ValueError("all of it is transparent")
    except UnidentifiedImageError as error:
        raise EmojiError(f"{path} is no PNG file. {_AGAIN}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EmojiError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error}). {_AGAIN}"
        ) from error
    return shown


_AGAIN = "Remove the folder of its package, and install it again."


def rasteriser() -> Callable[[str], bytes]:
    """Returns the function that makes a PNG of the text of an SVG file.

    Raises:
      EmojiError: resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise EmojiError(
            "the drawings of openmoji are SVG files, which need the package resvg-py: pip install "
            "'flamingo_jax[pipelines]', or leave openmoji out of --input"
        ) from error
    return lambda text: bytes(resvg_py.svg_to_bytes(svg_string=text, width=SIZE, height=SIZE))
