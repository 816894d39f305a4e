"""Decodes an image file into a square uint8 array, padded with the mean colour (paper, B.1.2).

    bytes --open--> header --decode--> pixels --resize--> --turn upright--> --pad--> square
                    format, size,      a JPEG at
                    orientation        n/8 of its size

The paper resizes to 320 x 320 (288 in the contrastive stage, 480 in fine-tuning), "padding with the
mean value if required". This is `image_fit` "pad". Models that were trained on other squares get
these, made from the whole image by PIL's bicubic filter: "crop" (CLIP) resizes the shorter side and
cuts out the middle, "squash" (IDEFICS) resizes both sides. Normalisation, flips and colour
augmentation run later, on the devices, so that only bytes are transferred.

The format of a file is read from its content, not from its name. Only the first frame of an
animation is used.
"""

import dataclasses
import functools
import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from flamingo_jax.data.config import ImageFit
from flamingo_jax.data.images.shrink import MOST, scratch, shrink
from flamingo_jax.data.schema import CorruptRecord

# The mean colour of ImageNet, which the normalisation of the vision encoder maps to almost 0.
MEAN_COLOUR = (124, 116, 104)
# A larger image counts as a decompression bomb. PIL warns only at larger sizes.
MAX_PIXELS = 80_000_000
# Scans of a JPEG. A progressive one has about ten, and each scan decodes the whole image.
MAX_SCANS = 100
# PIL reads more formats; for some of them it starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_ORIENTATION = 0x0112  # a tag of EXIF
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """The header of an encoded image.

    Attributes:
        width: in pixels, of the upright image.
        height: in pixels, of the upright image.
        format: PIL's name of it: "JPEG", "PNG", "WEBP", ...
    """

    width: int
    height: int
    format: str


def probe(encoded: bytes) -> ImageInfo:
    """Reads the header of an image, without decoding it.

    Raises:
        CorruptRecord: with the reason empty_image, not_an_image, truncated_image (in the header) or
            image_too_large.
    """
    with _opened(encoded) as image:
        width, height = image.size[::-1] if _orientation(image) >= 5 else image.size
        return ImageInfo(width, height, str(image.format))


def decode(encoded: bytes, size: int, image_fit: ImageFit = "pad") -> UInt8[np.ndarray, "S S 3"]:
    """Decodes an image into a square.

    Returns:
        uint8[size, size, 3] RGB, read-only. With padding, the longer side of the image fills the
        square, and the image is in the middle.

    Raises:
        CorruptRecord: as in `decode_inner`.
    """
    return _squared(decode_inner(encoded, size, image_fit), size)


def decode_inner(
    encoded: bytes, size: int, image_fit: ImageFit = "pad"
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

    Returns:
        uint8[h, w, 3] RGB, upright, max(h, w) = size; read-only.

    Raises:
        CorruptRecord: with the reason empty_image, not_an_image, truncated_image (the image begins
            correctly and is cut off or damaged) or image_too_large (too many pixels, or scans of a
            JPEG; checked before decoding).
    """
    if image_fit == "pad" and (plain := _plain_jpeg(encoded, size)) is not None:
        return plain
    with _opened(encoded) as image:
        orientation, inner = _orientation(image), _inner(image.size, size)
        try:
            if image_fit != "pad":
                return _filled(_upright(np.asarray(_to_rgb(image)), orientation), size, image_fit)
            pixels = (
                _jpeg(encoded, inner)
                if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
                else None
            )
            pixels = _any(image, inner) if pixels is None else pixels
        except Exception as error:
            raise CorruptRecord(
                f"An image of {len(encoded)} bytes ({image.format}, {image.width} x {image.height} "
                f"pixels) cannot be decoded: {error!r}.",
                reason="truncated_image",
            ) from error
    return _upright(pixels, orientation)


def fit(
    image: UInt8[np.ndarray, "h w 3"], size: int, image_fit: ImageFit = "pad"
) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes a decoded image, uint8[h, w, 3], to uint8[size, size, 3] in the same way."""
    if image_fit != "pad":
        return _filled(image, size, image_fit)
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


def _plain_jpeg(encoded: bytes, size: int) -> np.ndarray | None:
    """Decodes a plain JPEG, as most images are, without PIL; None if it needs more checks."""
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    head = encoded[: encoded.find(b"\xff\xda")]  # up to the first scan
    # EXIF data may say that the image is rotated; a progressive JPEG may have very many scans.
    if b"Exif\0\0" in head or b"\xff\xc2" in head:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    if colours in ("CMYK", "YCCK") or height * width > MAX_PIXELS:
        return None
    return _jpeg(encoded, _inner((width, height), size))


def _opened(encoded: bytes) -> Image.Image:
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
        raise CorruptRecord(
            f"{len(encoded)} bytes cannot be decoded as an image: {error!r}. Expected one of "
            f"{FORMATS}.",
            reason="truncated_image" if begins_well else "not_an_image",
        ) from error
    if image.width * image.height > MAX_PIXELS:
        too_large = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
    elif image.format in ("JPEG", "MPO") and (scans := encoded.count(b"\xff\xda")) > MAX_SCANS:
        too_large = f"{scans} scans, more than {MAX_SCANS}"
    if too_large:
        image.close()
        raise CorruptRecord(f"An image has {too_large}.", reason="image_too_large")
    return image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Returns those of FORMATS that the installed PIL supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Returns the orientation of the camera (EXIF): 1 = upright, 5 to 8 = on its side."""
    if "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  damaged EXIF data says nothing about the image
        return 1
    return found if found in range(1, 9) else 1


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


def _any(image: Image.Image, inner: tuple[int, int]) -> np.ndarray:
    image.draft("RGB", inner)
    image = _to_rgb(image)
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


def _filled(pixels: np.ndarray, size: int, image_fit: ImageFit) -> np.ndarray:
    """Returns a square without padding.

    For "crop" the rounding is that of torchvision, which CLIP's code uses.
    """
    height, width = pixels.shape[:2]
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if image_fit == "crop":
        # Only the middle is resized: a very long image would not fit in memory as a whole.
        (left, right), (top, bottom) = (
            _middle(side, int(size * side / min(width, height)), size) for side in (width, height)
        )
        box = (left, top, right, bottom)
    image = Image.fromarray(np.ascontiguousarray(pixels))
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


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB, with the mean colour behind transparent pixels."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits per pixel; PIL would clip all values above 255
        values = np.clip(np.asarray(image, np.int64), 0, 0xFFFF)
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*MEAN_COLOUR, 255))
    return Image.alpha_composite(background, image).convert("RGB")


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
