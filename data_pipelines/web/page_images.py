"""The bytes of the pictures of a page, and which of them are worth keeping (paper: A.3.1).

The paper drops images whose width or height is below 64 pixels, that are more than three times as
wide as high or as high as wide, and that show a single colour, and pages that are left without an
image. An image that a page shows twice stays where it stands first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import urllib.parse
from collections.abc import Callable

from etils import epath
from PIL import Image

from data_pipelines.page import Page, Picture, Reject
from flamingo_jax.data.images import read
from flamingo_jax.data.schema import CorruptRecord

# The bytes of the image of a URL, or None: not here; or why there are none.
Find = Callable[[str], bytes | Reject | None]

SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".gif")

# how its files start, also those of phones that hold a preview behind the image, which PIL takes
# for animations
_JPEG = b"\xff\xd8"
_STORED = ("PNG", "WEBP")  # beside JPEG
_PNG_MODES = ("L", "LA", "P", "RGB", "RGBA")
_PROBE = 64  # pixels: side at which colours are looked at
_ONE_COLOUR = 4  # of 255: what compression makes of a single colour


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Which images stay; the numbers are the paper's, but for max_bytes.

    Attributes:
      min_side: pixels of width and height.
      max_aspect: longer side by shorter side.
      max_bytes: of the file.
    """

    min_side: int = 64
    max_aspect: float = 3.0
    max_bytes: int = 20_000_000


def keep_image(data: bytes, limits: ImageLimits = ImageLimits()) -> Reject | None:
    """Whether an encoded image is worth keeping.

    Args:
      data: the file; any bytes.
      limits: the thresholds.

    Returns:
      None if it is, else a Reject of an image: image_too_small, image_aspect, single_colour;
      damaged: empty_image, not_an_image, truncated_image, image_too_large.
    """
    if len(data) > limits.max_bytes:
        return _reject(
            "image_too_large", f"{len(data)} bytes or more, at most {limits.max_bytes}", broken=True
        )
    try:
        info = read.probe(data)
        width, height = info.width, info.height
        if min(width, height) < limits.min_side:
            return _reject("image_too_small", f"{width} x {height} pixels")
        if max(width, height) > limits.max_aspect * min(width, height):
            return _reject("image_aspect", f"{width} x {height} pixels")
        pixels = read.decode(data, _PROBE)  # also tells whether the file is whole
    except CorruptRecord as error:
        return _reject(error.reason, str(error), broken=True)
    # The middle of the square is image, the rest padding. At aspect 3 a third of the side is left.
    rows, columns = (max(1, round(side * _PROBE / max(width, height))) for side in (height, width))
    top, left = (_PROBE - rows) // 2, (_PROBE - columns) // 2
    inner = pixels[top : top + rows, left : left + columns].reshape(-1, 3)
    if (inner.max(axis=0).astype(int) - inner.min(axis=0)).max() <= _ONE_COLOUR:
        return _reject("single_colour", f"RGB {tuple(inner[0].tolist())}")
    return None


def as_stored(data: bytes) -> bytes:
    """Returns an image that `keep_image` keeps as records hold it.

    JPEG, PNG and WebP as they are, anything else and the first frame of an animation as PNG.

    Raises:
      CorruptRecord: it cannot be decoded.
    """
    if data.startswith(_JPEG):
        return data
    read.probe(data)
    try:
        with Image.open(io.BytesIO(data), formats=read.FORMATS) as image:
            if image.format in _STORED and not getattr(image, "is_animated", False):
                return data
            image.seek(0)
            buffer = io.BytesIO()
            (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
            return buffer.getvalue()
    except Exception as error:
        raise CorruptRecord(
            f"An image cannot be written as PNG: {error!r}.", reason="truncated_image"
        ) from error


def with_images(
    page: Page, find: Find, limits: ImageLimits = ImageLimits()
) -> tuple[Page | Reject, list[Reject]]:
    """Gives the pictures of a page their bytes and drops those that are not to be kept.

    Args:
      page: its pictures may have bytes already.
      find: where to look for the others.
      limits: of images.

    Returns:
      The page, or a Reject for no_image_left; and one Reject for each image left out, of
      keep_image's reasons, missing_image, duplicate_image, or what `find` says.
    """
    parts: list[str | Picture] = []
    rejects: list[Reject] = []
    sources: set[str] = set()
    contents: set[bytes] = set()
    for part in page.parts:
        if isinstance(part, str):
            # Texts that an image has stood between are one text now.
            if parts and isinstance(parts[-1], str):
                parts[-1] = f"{parts[-1]}\n{part}"
            else:
                parts.append(part)
            continue
        if part.source in sources:
            rejects.append(_reject("duplicate_image", part.source))
            continue
        sources.add(part.source)
        data = part.data or find(part.source)
        if data is None:
            data = _reject("missing_image", "not found", broken=True)
        data = _kept(data, limits, contents) if isinstance(data, bytes) else data
        if isinstance(data, bytes):
            parts.append(dataclasses.replace(part, data=data))
        else:
            rejects.append(
                dataclasses.replace(data, detail=f"{part.source}: {data.detail}", unit="image")
            )
    if not any(isinstance(part, Picture) for part in parts):
        return Reject("no_image_left", page.url), rejects
    return dataclasses.replace(page, parts=tuple(parts)), rejects


def _kept(data: bytes, limits: ImageLimits, seen: set[bytes]) -> bytes | Reject:
    """The image as it is stored, or why it is left out; `seen`.

    Hashes of the images that the page has shown before.
    """
    if reject := keep_image(data, limits):
        return reject
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest in seen:
        return _reject("duplicate_image", "the page has shown it before, under another URL")
    seen.add(digest)
    try:
        return as_stored(data)
    except CorruptRecord as error:
        return _reject(error.reason, str(error), broken=True)


def local_image(
    folder: epath.Path, url: str, max_bytes: int = ImageLimits.max_bytes
) -> bytes | None:
    """Reads the image of a URL from a folder of images that were fetched before.

    Looked for are DIR/<sha256 of the URL, in hex>, with and without a suffix, DIR/<host>/<path of
    the URL>, DIR/<path of the URL> and DIR/<last component of the path>. No URL leads out of the
    folder; links in it are followed.

    Args:
      folder: DIR.
      url: absolute.
      max_bytes: of the file; of a longer one max_bytes + 1 are returned, so that it is seen to be
          too long.

    Returns:
      The file, or None: there is none.
    """
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    names = [f"{digest}{suffix}" for suffix in SUFFIXES]
    try:
        split = urllib.parse.urlsplit(url)
    except ValueError:
        split = urllib.parse.SplitResult("", "", "", "", "")
    components = [part for part in urllib.parse.unquote(split.path).split("/") if part]
    if components and not any(
        part in (".", "..") or "\\" in part or "\0" in part for part in components
    ):
        path = "/".join(components)
        names += (
            [f"{split.hostname}/{path}"] if split.hostname and split.hostname.strip(".") else []
        )
        names += [path, components[-1]]
    for name in names:
        try:
            file = folder / name
            if file.is_file():
                with file.open("rb") as opened:
                    return opened.read(max_bytes + 1)
        except OSError:  # a name that is too long, for one
            continue
    return None


def _reject(reason: str, detail: str, *, broken: bool = False) -> Reject:
    return Reject(reason, detail, unit="image", broken=broken)
