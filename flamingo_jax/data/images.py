"""Encoded image to square uint8 array: aspect ratio kept, the rest filled with the mean colour (appendix A.3.1, B.1).

The paper resizes to 320 x 320 (288 in the contrastive stage, 480 in fine-tuning), "padding with the mean value if
required". Normalisation, flips and colour augmentation run later, on the devices: only bytes travel there.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from flamingo_jax.data.schema import CorruptRecord

# The mean colour of ImageNet, which the vision encoder's normalisation maps to (almost) 0.
MEAN_COLOUR = (124, 116, 104)
MAX_PIXELS = 100_000_000  # beyond, an image is taken for a decompression bomb


def decode(encoded: bytes, size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Decodes JPEG, PNG, WebP or any other format that PIL reads.

    Args:
        encoded: the bytes of the file.
        size: side of the result, in pixels. An image that is already size x size passes unchanged.

    Returns:
        uint8[size, size, 3] RGB, not to be written to. The longer side fills the square, the image is in its middle.

    Raises:
        CorruptRecord: the bytes are not an image, or not a whole one, or it is absurdly large.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CorruptRecord(f"An image has {image.width} x {image.height} pixels, more than {MAX_PIXELS}.")
            image.draft("RGB", (size, size))  # a large JPEG is decoded at a half, a quarter or an eighth of its size
            upright = ImageOps.exif_transpose(image) if "exif" in image.info else image
            return _square(_to_rgb(upright), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, CorruptRecord):
            raise
        raise CorruptRecord(f"An image of {len(encoded)} bytes cannot be decoded: {error}.") from error


def fit(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "S S 3"]:
    """Brings a decoded image, uint8[h, w, 3], to uint8[size, size, 3] in the same way."""
    return image if image.shape[:2] == (size, size) else _square(Image.fromarray(image), size)


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns a uint8[h, w, 3] image as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Drops the colour model and puts whatever is transparent on the mean colour."""
    if image.mode == "RGB":
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*MEAN_COLOUR, 255))
    return Image.alpha_composite(background, image).convert("RGB")


def _square(image: Image.Image, size: int) -> np.ndarray:
    if image.size == (size, size):
        return np.asarray(image)
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (size - height) // 2, (size - width) // 2
    square = np.full((size, size, 3), MEAN_COLOUR, np.uint8)
    square[top : top + height, left : left + width] = resized
    return square
