"""Encoded image to square uint8 array.

Proportions kept, the rest padded with the mean colour (paper, B.1.2).

    bytes --open--> header: format, size, orientation --decode, a JPEG at n/8 of its size--> resize --turn upright--> square

The paper resizes to 320 x 320 (288 in the contrastive stage, 480 in fine-tuning), "padding with the
mean value if required". That is `image_fit` "pad". Models that were trained on other squares are
given theirs, as PIL's bicubic filter makes them of the whole image: "crop" (CLIP) brings the
shorter side to size and cuts out the middle, "squash" (IDEFICS) both sides. Normalisation, flips
and colour augmentation run later, on the devices: only bytes travel there.

What a file is, its content says, not its name. Of an animation the first frame counts.
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

# The mean colour of ImageNet, which the vision encoder's normalisation maps to (almost) 0.
MEAN_COLOUR = (124, 116, 104)
# beyond, an image is taken for a decompression bomb; less than where PIL begins to warn
MAX_PIXELS = 80_000_000
# of a JPEG: progressive ones have about ten, and each is decoded over the whole image
MAX_SCANS = 100
# PIL knows more, among them formats that other programs are started for.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_ORIENTATION = 0x0112  # a tag of EXIF
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What the header of an encoded image says.

    Attributes:
        width: in pixels, of the upright image.
        height: in pixels, of the upright image.
        format: as PIL names it: "JPEG", "PNG", "WEBP", ...
    """

    width: int
    height: int
    format: str


def probe(encoded: bytes) -> ImageInfo:
    """Reads the header alone.

    Raises:
        CorruptRecord: with the reason empty_image, not_an_image, truncated_image (in its header) or
            image_too_large.
    """
    with _opened(encoded) as image:
        width, height = image.size[::-1] if _orientation(image) >= 5 else image.size
        return ImageInfo(width, height, str(image.format))


def decode(encoded: bytes, size: int, image_fit: ImageFit = "pad") -> UInt8[np.ndarray, "S S 3"]:
    """Decodes an image into a square: `decode_inner`, then `place`.

    Returns:
        uint8[size, size, 3] RGB, not to be written to. Padded, the longer side fills the square,
        and the image is in its middle.

    Raises:
        CorruptRecord: as of `decode_inner`.
    """
    return _squared(decode_inner(encoded, size, image_fit), size)


def decode_inner(
    encoded: bytes, size: int, image_fit: ImageFit = "pad"
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image of any of FORMATS, without the padding that makes it square.

    A JPEG is decoded at the smallest eighth of its size that is large enough, so that what is
    thrown away is not computed first; a smooth image differs from its exact reduction by at most 4
    of 255.

    Args:
        encoded: the bytes of the file.
        size: pixels of the longer side of the result. An image that has them already passes
            unchanged.
        image_fit: how the image becomes a square; only a padded one has sides that differ, and is
            decoded at reduced size.

    Returns:
        uint8[h, w, 3] RGB, upright, max(h, w) = size; not to be written to.

    Raises:
        CorruptRecord: with the reason empty_image, not_an_image, truncated_image (it begins well
            and is cut off or damaged) or image_too_large (in pixels, or scans of a JPEG; told
            before anything is decoded).
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
    """Brings a decoded image, uint8[h, w, 3], to uint8[size, size, 3] in the same way."""
    if image_fit != "pad":
        return _filled(image, size, image_fit)
    return _squared(_resized(image, _inner(image.shape[1::-1], size)), size)


def place(inner: UInt8[np.ndarray, "h w 3"], square: UInt8[np.ndarray, "S S 3"]) -> None:
    """Writes an image into the middle of a square that it fits in, and the mean colour around it."""
    size, (height, width) = len(square), inner.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = inner
    mean = _mean(size)
    for band in (np.s_[:top], np.s_[top + height :], np.s_[:, :left], np.s_[:, left + width :]):
        square[band] = mean[band]


@functools.lru_cache(maxsize=8)
def _mean(size: int) -> np.ndarray:
    """A square of the mean colour.

    Copying it is faster than writing three numbers again and again.
    """
    return np.full((size, size, 3), MEAN_COLOUR, np.uint8)


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns a uint8[h, w, 3] image as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _plain_jpeg(encoded: bytes, size: int) -> np.ndarray | None:
    """The way of most images, without PIL where it is not needed.

    None = there is something about this one.
    """
    if not encoded.startswith(b"\xff\xd8\xff"):
        return None
    head = encoded[: encoded.find(b"\xff\xda")]  # up to the first scan
    # may lie on its side; progressive, may have very many scans
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
    """Reads the header, and refuses what would take too much to decode."""
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
    """Those of FORMATS that this build of PIL has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """How a camera was held: 1 = upright, 5 to 8 = on its side (EXIF)."""
    if "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  damaged EXIF data says nothing about the image
        return 1
    return found if found in range(1, 9) else 1


def _inner(stored: tuple[int, int], size: int) -> tuple[int, int]:
    """(width, height) of the image within the square."""
    scale = size / max(stored)
    return max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))


def _jpeg(encoded: bytes, inner: tuple[int, int]) -> np.ndarray | None:
    """The image at its inner size, or None where PIL must say whether a flaw is serious."""
    least = {"min_width": inner[0], "min_height": inner[1], "min_factor": 1}
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded, **least)
        if max(width, height) == max(inner) or not all(
            1 <= a / b <= MOST for a, b in zip((width, height), inner, strict=True)
        ):
            return _resized(simplejpeg.decode_jpeg(encoded, "RGB", **least), inner)
        buffer = scratch("decoded", np.uint8, (height * width * 4,))
        return shrink(simplejpeg.decode_jpeg(encoded, "RGBX", buffer=buffer, **least), inner)
    except ValueError:
        return None


def _any(image: Image.Image, inner: tuple[int, int]) -> np.ndarray:
    image.draft("RGB", inner)
    whole = _to_rgb(image)
    return np.asarray(
        whole
        if whole.size == inner
        else whole.resize(inner, _filter(whole.size, inner), reducing_gap=3.0)
    )


def _resized(pixels: np.ndarray, inner: tuple[int, int]) -> np.ndarray:
    stored = pixels.shape[1::-1]
    if stored == inner:
        return pixels
    image = Image.frombuffer(
        "RGB", stored, np.ascontiguousarray(pixels), "raw", "RGB", 0, 1
    )  # one copy less than fromarray
    return np.asarray(image.resize(inner, _filter(stored, inner), reducing_gap=3.0))


def _filled(pixels: np.ndarray, size: int, image_fit: ImageFit) -> np.ndarray:
    """A square without padding.

    For "crop" the rounding is torchvision's, which CLIP's own code uses.
    """
    height, width = pixels.shape[:2]
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if image_fit == "crop":
        scaled = [int(size * side / min(width, height)) for side in (width, height)]
        start = [round((side - size) / 2) for side in scaled]
        # Only what is left of the image is resized: of a very long one the whole would not fit in
        # memory.
        near, far = (
            [
                (first + more) * side / whole
                for first, side, whole in zip(start, (width, height), scaled, strict=True)
            ]
            for more in (0, size)
        )
        box = (near[0], near[1], far[0], far[1])
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _filter(stored: tuple[int, int], inner: tuple[int, int]) -> Image.Resampling:
    """Hamming is as sharp as bicubic where an image shrinks, at the cost of bilinear.

    It is poor where one grows.
    """
    return Image.Resampling.HAMMING if max(stored) >= max(inner) else Image.Resampling.BICUBIC


def _to_rgb(image: Image.Image) -> Image.Image:
    """Drops the colour model and puts whatever is transparent on the mean colour."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits per pixel; PIL itself would cut off all above 255
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
