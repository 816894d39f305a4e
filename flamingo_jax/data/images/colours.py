"""Turns the pixels of any PIL image into 8 bits of RGB: the one place where colours are converted.

    16 bits, 32 bits, float --scale--> 8 bits --to RGB or RGBA--> --on a background--> RGB

16 bits are divided by 257. Numbers without a stated range (float, 32 bits) are taken as 0..1 if all
are, else as 0..255, else as 0..65535; others are spread from the smallest to the largest. Numbers
that are not finite become the smallest.

Behind transparent pixels is a background:

    "mean"    the mean colour, which the vision encoder's normalisation maps to almost 0. A black or
              a white drawing without a background can be seen.
    "white"   as transformers' processors of CLIP and IDEFICS do.
    "none"    the transparency is ignored, and the colours that it hides are seen: PIL's
              convert("RGB"), as open_clip, OpenFlamingo and timm do.

Colour profiles (ICC) and gamma are not applied, as in the training of CLIP and IDEFICS.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from flamingo_jax.data.config import Background

# The mean colour of ImageNet, which the normalisation of the vision encoder maps to almost 0.
MEAN_COLOUR = (124, 116, 104)

_BEHIND = {"mean": MEAN_COLOUR, "white": (255, 255, 255)}
_WIDE = ("I", "F")  # modes with more than 8 bits begin with one of them
_STRIP = 1 << 22  # pixels that are converted at once: a large image has no second copy in memory
_ORIENTATION = 0x0112  # a tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image) -> int:
    """Returns the orientation of the camera (EXIF): 1 = upright, 5 to 8 = on its side.

    As in browsers, other places that state one (XMP, a PNG's text) do not count. PIL turns a TIFF
    upright itself.
    """
    found = 1
    if stored := image.info.get("exif"):
        try:
            exif = Image.Exif()
            exif.load(stored)
            found = exif.get(_ORIENTATION, 1)
        except Exception:  # noqa: BLE001  damaged EXIF data says nothing about the image
            return 1
    return found if found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Loads an image, and turns it as its orientation says."""
    turn = _TURNS.get(orientation(image))
    # Only now: it adds what stands behind the pixels of a PNG, which browsers do not read.
    image.load()
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, background: Background = "mean") -> Image.Image:
    """Converts an image of any mode to RGB."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(_WIDE):
        wide = _scale(image)
        return _in_strips(image, "RGB", lambda strip: _on(wide(strip), background))
    if not image.has_transparency_data:
        return image.convert("RGB")
    return _in_strips(image, "RGB", lambda strip: _on(strip, background))


def to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB, or to RGBA if it has transparent pixels."""
    if image.mode.startswith(_WIDE):
        wide, mode = _scale(image), "RGBA" if image.has_transparency_data else "RGB"
        return _in_strips(image, mode, lambda strip: wide(strip).convert(mode))
    if image.has_transparency_data:
        return _rgba(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on(image: Image.Image, background: Background) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = _rgba(image)
    if background == "none":
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, (*_BEHIND[background], 255))
    return Image.alpha_composite(behind, image).convert("RGB")


def _rgba(image: Image.Image) -> Image.Image:
    # PIL converts premultiplied grey to LA alone.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _in_strips(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    if image.width * image.height <= _STRIP:
        return convert(image)
    whole = Image.new(mode, image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip), (0, top))
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(_STRIP // max(image.width, 1), 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _scale(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Returns the function that converts a strip of a mode with more than 8 bits to L or LA."""
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        return functools.partial(_eight_bits, low=0.0, high=65535.0)
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    tops = (1.0, 255.0, 65535.0) if image.mode.startswith("F") else (255.0, 65535.0)
    if low >= 0 and high <= tops[-1]:  # also if no number is finite
        low, high = 0.0, next(top for top in tops if high <= top)
    return functools.partial(_eight_bits, low=low, high=high)


def _eight_bits(strip: Image.Image, *, low: float, high: float) -> Image.Image:
    """Scales low..high to 0..255; pixels of the transparent value become transparent."""
    values = np.asarray(strip)
    if high == 0xFFFF and values.dtype.kind in "iu":
        grey = (values.clip(0, 0xFFFF) // 257).astype(np.uint8)
    else:
        finite = np.nan_to_num(values.astype(np.float64), nan=low, posinf=low, neginf=low)
        grey = np.rint((finite - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    transparent = strip.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
