"""Decodes an image file into a square uint8 array, padded with the mean colour (paper, B.1.2).

    bytes --open--> header --decode--> pixels --resize--> --turn upright--> --pad--> square
                    format, size,      a JPEG at
                    orientation        n/8 of its size

The paper resizes to 320 x 320 (288 in the contrastive stage, 480 in fine-tuning), "padding with the
mean value if required". This is `image_fit` "pad". Models that were trained on other squares get
these, made from the whole image by PIL's bicubic filter: "crop" (CLIP) resizes the shorter side and
cuts out the middle, "squash" (IDEFICS) resizes both sides. Normalisation, flips and colour
augmentation run later, on the devices, so that only bytes are transferred.

A file, its bytes and the PIL image of it give the same pixels: `colours` has the rules for colours,
transparency and orientation. The format of a file is read from its content, not from its name. Only
the first frame of an animation is used.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.data.images import colours, jpeg
from flamingo_jax.data.images.colours import MEAN_COLOUR
from flamingo_jax.data.images.shrink import MOST, scratch, shrink
from flamingo_jax.data.schema import CorruptRecord

# Is raised when the same file becomes other pixels: what was stored about its pixels is then made
# again.
VERSION = 2
# A larger image counts as a decompression bomb. PIL warns only at larger sizes.
MAX_PIXELS = 80_000_000
# Scans of a JPEG. A progressive one has about ten, and each scan decodes the whole image.
MAX_SCANS = 100
# PIL reads more formats; for some of them it starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """The header of an encoded image.

    Attributes:
        width: in pixels, of the upright image.
        height: in pixels, of the upright image.
        format: PIL's name of it: "JPEG", "PNG", "WEBP", ...
        is_animated: a PNG or WebP of more than one frame.
    """

    width: int
    height: int
    format: str
    is_animated: bool = False


def probe(encoded: bytes) -> ImageInfo:
    """Reads the header of an image, without decoding it.

    Raises:
        CorruptRecord: with the reason empty_image, not_an_image, truncated_image (in the header) or
            image_too_large.
    """
    with _opened(encoded) as image:
        width, height = image.size[::-1] if colours.orientation(image) >= 5 else image.size
        is_animated = image.format in ("PNG", "WEBP") and bool(getattr(image, "is_animated", False))
        return ImageInfo(width, height, str(image.format), is_animated)


def decode(
    encoded: bytes, size: int, image_fit: ImageFit = "pad", background: Background = "mean"
) -> UInt8[np.ndarray, "S S 3"]:
    """Decodes an image into a square.

    Returns:
        uint8[size, size, 3] RGB, read-only. With padding, the longer side of the image fills the
        square, and the image is in the middle.

    Raises:
        CorruptRecord: as in `decode_inner`.
    """
    return _squared(decode_inner(encoded, size, image_fit, background), size)


def decode_inner(
    encoded: bytes, size: int, image_fit: ImageFit = "pad", background: Background = "mean"
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image of any of FORMATS, without the padding that makes it square.

    A JPEG is decoded at the smallest n/8 of its size that is large enough, so that no pixels are
    computed only to be thrown away. A smooth image differs from its exact reduction by at most 4 of
    255.

    Args:
        encoded: the bytes of the file.
        size: pixels of the longer side of the result. An image of this size is not resized.
        image_fit: how the image becomes a square. With "pad" the sides of the result differ, and a
            JPEG is decoded at reduced size; otherwise the result is a square.
        background: what is behind transparent pixels.

    Returns:
        uint8[h, w, 3] RGB, upright, max(h, w) = size; read-only.

    Raises:
        CorruptRecord: with the reason empty_image, not_an_image, truncated_image (the image begins
            correctly and is cut off or damaged) or image_too_large (too many pixels, or scans of a
            JPEG; checked before decoding).
    """
    if image_fit == "pad" and (plain := _plain_jpeg(encoded, size)) is not None:
        return plain
    with _opened(encoded) as image, _damage_of(image, encoded):
        inner = _inner(image.size, size)
        is_jpeg = image.format in ("JPEG", "MPO")
        if image_fit == "pad" and is_jpeg:
            orientation = colours.orientation(image)
            pixels = _jpeg(encoded, inner) if image.mode in ("RGB", "L") else None
            return _upright(_drafted(image, inner) if pixels is None else pixels, orientation)
        return _inside(colours.to_rgb(colours.upright(image), background), size, image_fit)


def whole(encoded: bytes, background: Background = "mean") -> Image.Image:
    """Decodes an image of any of FORMATS at its full size: RGB, upright.

    Args:
        encoded: the bytes of the file.
        background: what is behind transparent pixels.

    Raises:
        CorruptRecord: as in `decode_inner`.
    """
    with _opened(encoded) as image, _damage_of(image, encoded):
        return colours.to_rgb(colours.upright(image), background)


def encoded_of(image: Image.Image) -> bytes | None:
    """Returns the file of a PIL image that was opened and not loaded or changed yet, else None.

    Its pixels are then read as those of every file: for a JPEG, at reduced size.
    """
    file = getattr(image, "fp", None)
    # A WebP that is loaded has its pixels for a file.
    is_loaded = not getattr(image, "tile", None) and image.format != "WEBP"
    if file is None or is_loaded or image.tell():
        return None
    try:
        place = file.tell()
        file.seek(0)
        encoded = file.read()
        file.seek(place)
        with _header(encoded) as same:
            is_same = (same.info, same.size, same.mode) == (image.info, image.size, image.mode)
            return encoded if is_same else None
    except (CorruptRecord, OSError, ValueError):  # ValueError: the file was closed
        return None


@contextlib.contextmanager
def _damage_of(image: Image.Image, encoded: bytes) -> Iterator[None]:
    """Turns the errors of a decoder into CorruptRecord."""
    try:
        yield
    except Exception as error:
        raise CorruptRecord(
            f"An image of {len(encoded)} bytes ({image.format}, {image.width} x {image.height} "
            f"pixels) cannot be decoded: {error!r}.",
            reason="truncated_image",
        ) from error


def fit(
    image: UInt8[np.ndarray, "h w 3"], size: int, image_fit: ImageFit = "pad"
) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes a decoded image, uint8[h, w, 3], to uint8[size, size, 3] in the same way."""
    if image_fit != "pad":
        return _filled(Image.fromarray(np.ascontiguousarray(image)), size, image_fit)
    return _squared(_resized(image, _inner(image.shape[1::-1], size)), size)


def place(inner: UInt8[np.ndarray, "h w 3"], square: UInt8[np.ndarray, "S S 3"]) -> None:
    """Writes an image into the middle of a square, and the mean colour around it."""
    size, (height, width) = len(square), inner.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = inner
    mean = _mean(size)
    for band in (np.s_[:top], np.s_[top + height :], np.s_[:, :left], np.s_[:, left + width :]):
        square[band] = mean[band]


@functools.lru_cache(maxsize=8)
def _mean(size: int) -> np.ndarray:
    """Returns a square of the mean colour; copying it is faster than filling in three numbers."""
    return np.full((size, size, 3), MEAN_COLOUR, np.uint8)


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes a uint8[h, w, 3] image as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def as_png(encoded: bytes) -> bytes:
    """Encodes the first frame of an image of any of FORMATS as PNG: `decode` gives the same pixels.

    Raises:
        CorruptRecord: as in `decode_inner`.
    """
    with _opened(encoded) as image, _damage_of(image, encoded):
        plain = colours.upright(image)
        is_palette = plain.mode == "P" and plain.palette and plain.palette.mode == "RGB"
        if not is_palette and (plain.mode != "L" or plain.has_transparency_data):
            plain = colours.to_rgb_or_rgba(plain)
        buffer = io.BytesIO()
        plain.save(buffer, "PNG", icc_profile=None, exif=None)
        return buffer.getvalue()


def _plain_jpeg(encoded: bytes, size: int) -> np.ndarray | None:
    """Decodes a plain JPEG, as most images are, without PIL; None if it needs more checks."""
    header = jpeg.read_header(encoded)
    # EXIF data may say that the image is rotated; a progressive JPEG may have very many scans.
    if header is None or header.has_exif or not header.has_one_scan:
        return None
    try:
        height, width, model, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if model in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
        return None
    return _jpeg(encoded, _inner((width, height), size))


def _opened(encoded: bytes) -> Image.Image:
    """Reads the header, and mends what PIL takes from it."""
    image = _header(encoded)
    if image.format == "PNG":
        _scale_transparency(image, depth=encoded[24])
    if image.format == "TIFF":
        image.info.pop("xmp", None)  # or PIL would turn the image by it
    tiles = getattr(image, "tile", None)
    if image.format == "GIF" and tiles and tiles[0].extents != (0, 0, *image.size):
        with image, _damage_of(image, encoded):
            return _on_clear_canvas(image, tiles[0].extents)
    if image.format == "WEBP" and image.mode == "RGB" and getattr(image, "is_animated", False):
        # It may leave a part of its canvas transparent without saying so.
        vars(image).update(rawmode="RGBA", _mode="RGBA")
    return image


def _on_clear_canvas(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Loads a GIF with a first frame that is smaller than the canvas: the rest is transparent."""
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(box), box[:2])
    canvas.format = image.format
    return canvas


def _header(encoded: bytes) -> Image.Image:
    """Reads the header, and raises an error for images that are too large to decode."""
    if not encoded:
        raise CorruptRecord("An image has no bytes.", reason="empty_image")
    too_large = None
    try:
        image = Image.open(io.BytesIO(encoded), formats=_known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptRecord(
            f"An image of {len(encoded)} bytes is too large: {error}", reason="image_too_large"
        ) from error
    except Exception as error:
        begins_well = encoded.startswith(_BEGINNINGS) or encoded[8:12] == b"WEBP"
        # PIL's own words name an address in memory, which is another one in every run.
        unknown = isinstance(error, UnidentifiedImageError)
        raise CorruptRecord(
            f"{len(encoded)} bytes cannot be decoded as an image: "
            f"{'unknown or damaged format' if unknown else repr(error)}; it begins with "
            f"{encoded[:8]!r}. Expected one of {FORMATS}.",
            reason="truncated_image" if begins_well else "not_an_image",
        ) from error
    if image.width * image.height > MAX_PIXELS:
        too_large = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
    elif image.format in ("JPEG", "MPO") and _has_too_many_scans(encoded):
        too_large = f"more than {MAX_SCANS} scans"
    if too_large:
        image.close()
        raise CorruptRecord(f"An image has {too_large}.", reason="image_too_large")
    return image


def _has_too_many_scans(encoded: bytes) -> bool:
    header = jpeg.read_header(encoded)
    is_one = header is not None and header.has_one_scan
    return not is_one and jpeg.count_scans(encoded, MAX_SCANS) > MAX_SCANS


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Scales the transparent colour of a PNG to 8 bits, as PIL does with the pixels alone."""
    found = image.info.get("transparency")
    if image.mode == "L" and isinstance(found, int) and depth < 8:
        image.info["transparency"] = found * 255 // ((1 << depth) - 1)
    elif isinstance(found, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in found)


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Returns those of FORMATS that the installed PIL supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _inner(stored: tuple[int, int], size: int) -> tuple[int, int]:
    """Returns (width, height) of the image within the square."""
    scale = size / max(stored)
    return max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))


def _jpeg(encoded: bytes, inner: tuple[int, int]) -> np.ndarray | None:
    """Decodes a JPEG at its inner size; None if PIL must decide whether it is damaged."""
    least = {"min_width": inner[0], "min_height": inner[1], "min_factor": 1}
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded, **least)
        ratios = (width / inner[0], height / inner[1])
        if max(width, height) == max(inner) or not all(1 <= ratio <= MOST for ratio in ratios):
            return _resized(simplejpeg.decode_jpeg(encoded, "RGB", **least), inner)
        buffer = scratch("decoded", np.uint8, (height * width * 4,))
        return shrink(simplejpeg.decode_jpeg(encoded, "RGBX", buffer=buffer, **least), inner)
    except ValueError:
        return None


def _drafted(image: Image.Image, inner: tuple[int, int]) -> np.ndarray:
    """Decodes a JPEG by PIL at its inner size."""
    image.draft("RGB", inner)
    return _at(colours.to_rgb(image), inner)


def _inside(image: Image.Image, size: int, image_fit: ImageFit) -> np.ndarray:
    """Resizes an RGB image; the result is a square unless it must be padded."""
    if image_fit != "pad":
        return _filled(image, size, image_fit)
    return _at(image, _inner(image.size, size))


def _at(image: Image.Image, inner: tuple[int, int]) -> np.ndarray:
    """Resizes an RGB image to (width, height)."""
    if image.size != inner:
        image = image.resize(inner, _filter(image.size, inner), reducing_gap=3.0)
    return np.asarray(image)


def _resized(pixels: np.ndarray, inner: tuple[int, int]) -> np.ndarray:
    stored = pixels.shape[1::-1]
    if stored == inner:
        return pixels
    # One copy less than fromarray.
    image = Image.frombuffer("RGB", stored, np.ascontiguousarray(pixels), "raw", "RGB", 0, 1)
    return np.asarray(image.resize(inner, _filter(stored, inner), reducing_gap=3.0))


def _filled(image: Image.Image, size: int, image_fit: ImageFit) -> np.ndarray:
    """Returns a square without padding.

    For "crop" the rounding is that of torchvision, which CLIP's code uses.
    """
    width, height = image.size
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if image_fit == "crop":
        # Only the middle is resized: a very long image would not fit in memory as a whole.
        (left, right), (top, bottom) = (
            _middle(side, int(size * side / min(width, height)), size) for side in (width, height)
        )
        box = (left, top, right, bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _middle(side: int, scaled: int, size: int) -> tuple[float, float]:
    """Returns the ends, in pixels of the image, of the middle `size` pixels of its scaled side."""
    start = round((scaled - size) / 2)
    return start * side / scaled, (start + size) * side / scaled


def _filter(stored: tuple[int, int], inner: tuple[int, int]) -> Image.Resampling:
    """Returns the filter for resizing.

    To shrink an image, Hamming is as sharp as bicubic and as fast as bilinear. To enlarge it,
    Hamming is poor.
    """
    return Image.Resampling.HAMMING if max(stored) >= max(inner) else Image.Resampling.BICUBIC


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1] if orientation in (2, 3) else pixels[::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1] if orientation in (3, 4) else pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if orientation >= 5 else pixels


def _squared(inner: np.ndarray, size: int) -> np.ndarray:
    if inner.shape[:2] == (size, size):
        return inner
    square = np.empty((size, size, 3), np.uint8)
    place(inner, square)
    return square
