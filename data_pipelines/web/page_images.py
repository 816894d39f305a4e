"""Finds the bytes of the pictures of a page, and chooses which to keep (paper, A.3.1).

The paper drops images with a width or height below 64 pixels, with an aspect ratio above three, or
of a single colour; and pages that have no image left. An image that a page shows twice is kept at
its first place.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable

from data_pipelines.page import Page, Picture, Reject
from flamingo_jax.data.images import read
from flamingo_jax.data.schema import CorruptRecord

# Returns the bytes of the image of a URL, None if this source does not have it, or a Reject.
Find = Callable[[str], bytes | Reject | None]

# The start of JPEG files, also of those by phones with a preview after the image, which PIL reads
# as animations.
_JPEG = b"\xff\xd8"
_STORED = ("PNG", "WEBP")  # formats that are stored as they are, in addition to JPEG
_PROBE = 64  # pixels: side of the image in which colours are compared
_ONE_COLOUR = 4  # of 255: largest difference that compression makes of a single colour


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """Which images are kept; the numbers are the paper's, except max_bytes.

    Attributes:
      min_side: smallest width and height, in pixels.
      max_aspect: longer side divided by shorter side.
      max_bytes: of the file.
    """

    min_side: int = 64
    max_aspect: float = 3.0
    max_bytes: int = 20_000_000


def keep_image(data: bytes, limits: ImageLimits = ImageLimits()) -> Reject | None:
    """Returns None for an encoded image that is kept, else why it is not.

    Args:
      data: the file; any bytes.
      limits: the thresholds.

    Returns:
      None, or a Reject of an image: image_too_small, image_aspect, single_colour; or, damaged:
      empty_image, not_an_image, truncated_image, image_too_large.
    """
    if len(data) > limits.max_bytes:
        detail = f"{len(data)} bytes or more, at most {limits.max_bytes}"
        return _reject("image_too_large", detail, broken=True)
    try:
        info = read.probe(data)
        width, height = info.width, info.height
        if min(width, height) < limits.min_side:
            return _reject("image_too_small", f"{width} x {height} pixels")
        if max(width, height) > limits.max_aspect * min(width, height):
            return _reject("image_aspect", f"{width} x {height} pixels")
        pixels = read.decode_inner(data, _PROBE)  # raises also if the file is truncated
    except CorruptRecord as error:
        return _reject(error.reason, str(error), broken=True)
    inner = pixels.reshape(-1, 3)
    if (inner.max(axis=0).astype(int) - inner.min(axis=0)).max() <= _ONE_COLOUR:
        return _reject("single_colour", f"RGB {tuple(inner[0].tolist())}")
    return None


def as_stored(data: bytes) -> bytes:
    """Returns an image that `keep_image` keeps in the form that records store.

    JPEG, PNG and WebP are not changed. All other images, and the first frame of an animation,
    become an upright PNG. Both forms decode to the same pixels.

    Raises:
      CorruptRecord: it cannot be decoded.
    """
    if data.startswith(_JPEG):
        return data
    info = read.probe(data)
    return data if info.format in _STORED and not info.is_animated else read.as_png(data)


def with_images(
    page: Page, find: Find, limits: ImageLimits = ImageLimits(), fetch: Find = lambda url: None
) -> tuple[Page | Reject, list[Reject]]:
    """Adds the bytes to the pictures of a page, and drops pictures that are not kept.

    Args:
      page: its pictures can have bytes already.
      find: where to look for the others.
      limits: of images.
      fetch: where to look for what `find` has at none of its URLs.

    Returns:
      The page, or a Reject for no_image_left; and one Reject for each image left out, with a reason
      of keep_image, missing_image, duplicate_image, or the reason that `find` gives.
    """
    parts: list[str | Picture] = []
    rejects: list[Reject] = []
    sources: set[str] = set()
    contents: set[bytes] = set()
    wanted = functools.partial(_found, find=find, fetch=fetch, limits=limits)
    for part in page.parts:
        if isinstance(part, str):
            # Joins two texts if the image between them was dropped.
            if parts and isinstance(parts[-1], str):
                parts[-1] = f"{parts[-1]}\n{part}"
            else:
                parts.append(part)
            continue
        found = wanted(part, sources, contents)
        if isinstance(found, Reject):
            rejects.append(found)
        else:
            parts.append(found)
    if not any(isinstance(part, Picture) for part in parts):
        return Reject("no_image_left", page.url), rejects
    return dataclasses.replace(page, parts=tuple(parts)), rejects


def _found(
    picture: Picture,
    sources: set[str],
    contents: set[bytes],
    *,
    find: Find,
    fetch: Find,
    limits: ImageLimits,
) -> Picture | Reject:
    """Returns the first of the places of an image that is found and kept, else why it is not.

    Args:
      picture: with its other places.
      sources: URLs that were tried before; gets those of this picture.
      contents: as in `_kept`.
      find: as in `with_images`.
      fetch: as in `with_images`.
      limits: of images.
    """
    places = [place for place in (picture, *picture.others) if place.source not in sources]
    if not places:
        return _reject("duplicate_image", picture.source)
    rejects: list[Reject] = []
    for look in (find, fetch):
        for place in places:
            data = place.data or look(place.source)
            if data is None:
                continue
            sources.add(place.source)
            data = _kept(data, limits, contents) if isinstance(data, bytes) else data
            if isinstance(data, bytes):
                sources.update(each.source for each in places)
                return Picture(place.source, data, picture.alt)
            detail = f"{place.source}: {data.detail}"
            rejects.append(dataclasses.replace(data, detail=detail, unit="image"))
            if data.reason == "duplicate_image":
                return rejects[-1]
        places = [place for place in places if place.source not in sources and not place.data]
    sources.add(picture.source)
    missing = _reject("missing_image", f"{picture.source}: not found", broken=True)
    return rejects[0] if rejects else missing


def _kept(data: bytes, limits: ImageLimits, seen: set[bytes]) -> bytes | Reject:
    """Returns the image in the form that records store, or why it is left out.

    Args:
      data: the file.
      limits: the thresholds.
      seen: hashes of the images that the page has shown before; gets the hash of this one.
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


def _reject(reason: str, detail: str, *, broken: bool = False) -> Reject:
    return Reject(reason, detail, unit="image", broken=broken)
