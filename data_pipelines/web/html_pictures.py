"""Finds the URLs of the image that an <img> of a web page shows, the best first.

Which of them a crawl has captured differs: old crawlers fetched `src`, newer ones what a browser
with scripts fetches. So all are named, and the first whose image is found and kept is taken.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from data_pipelines.page import Picture

Attributes = Mapping[str, str | None]

# Scripts that load images late read these attributes, and `src` is then a placeholder.
_LAZY = (
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-original-src",
    "data-hi-res-src",
    "data-orig-file",
)
_LAZY_SETS = ("data-srcset", "data-lazy-srcset")
_DESCRIPTOR = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([wx])")
_IMAGE_NAME = re.compile(
    r"\.(?:jpe?g|jpe|jfif|png|webp|gif|bmp|avif|tiff?)(?![a-z0-9])", re.IGNORECASE
)
_WIDE_ENOUGH = 640  # pixels: twice the model's input; the smallest size with so many is preferred
_DRAWINGS = ("image/svg+xml",)
_LONGEST_URL = 4096
_LONGEST_ALT = 1000
_MOST_URLS = 16  # of one image


def picture_of(
    attributes: Attributes, sources: Sequence[Attributes], resolve: Callable[[str], str]
) -> Picture | None:
    """Returns the picture of an <img>, with all its URLs.

    The order: attributes that scripts read, `src`, `srcset`, the <source>s of a <picture>, any
    other data-* attribute with the name of an image, an image inside the page. In a set, the
    smallest image that is wide enough comes first.

    None for an <img> without a source, for drawings (SVG), and for what is not fetched (blob:,
    javascript:).

    Args:
      attributes: of the element.
      sources: attributes of the <source>s before it in its <picture>.
      resolve: reference -> absolute URL.
    """
    urls: dict[str, None] = {}
    for reference in _references(attributes, sources):
        url = resolve(reference) if reference.strip() else ""
        is_drawing = url.partition("?")[0].lower().endswith(".svg")
        is_fetched = url.startswith(("http://", "https://", "file://")) and len(url) <= _LONGEST_URL
        if is_fetched and not is_drawing:
            urls[url] = None
        if len(urls) == _MOST_URLS:
            break
    alt = " ".join((attributes.get("alt") or "").split())[:_LONGEST_ALT]
    found = [Picture(url, alt=alt) for url in urls]
    if inline := _inline(attributes.get("src") or "", alt):
        found.append(inline)
    return functools.reduce(_or_else, reversed(found)) if found else None


def _or_else(other: Picture, first: Picture) -> Picture:
    """Returns a picture with another one to take if it is not found."""
    return Picture(first.source, first.data, first.alt, (other, *other.others))


def _references(attributes: Attributes, sources: Sequence[Attributes]) -> Iterator[str]:
    """Yields all references to the image, the best first."""
    named = (attributes.get(name) or "" for name in _LAZY)
    yield from (value for value in named if _is_path(value))
    yield from _in_sets(attributes, _LAZY_SETS)
    if not (inline := attributes.get("src") or "").lstrip().startswith("data:"):
        yield inline
    yield from _in_sets(attributes, ("srcset",))
    for source in sources:
        if (source.get("type") or "").strip().lower() not in _DRAWINGS:
            yield from _in_sets(source, ("srcset", *_LAZY_SETS))
    for name, value in attributes.items():
        if name.startswith("data-") and name not in _LAZY and name not in _LAZY_SETS and value:
            if name.endswith("srcset"):
                yield from _by_preference(_in_set(value))
            elif _is_path(value) and _IMAGE_NAME.search(value):
                yield value


def _is_path(value: str) -> bool:
    """Returns True for what looks like a URL or a path, and not like "true", "1" or JSON."""
    value = value.strip()
    is_other = not value or len(value) > _LONGEST_URL or value.startswith("data:")
    if is_other or any(letter in value for letter in "{}<>\n"):
        return False
    return "/" in value or _IMAGE_NAME.search(value) is not None


def _in_sets(attributes: Attributes, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if value := attributes.get(name):
            yield from _by_preference(_in_set(value))


def _by_preference(found: Iterable[tuple[str, float]]) -> list[str]:
    """Sorts the images of a set: the smallest that is wide enough, larger ones, smaller ones."""
    distance = lambda width: width - _WIDE_ENOUGH if width >= _WIDE_ENOUGH else 1e9 - width
    ordered = sorted(found, key=lambda entry: distance(entry[1]))
    return [url for url, _ in ordered if not url.startswith("data:")][:_MOST_URLS]


def _in_set(srcset: str) -> Iterator[tuple[str, float]]:
    """Yields (reference, width in pixels) of a srcset such as "a.jpg 640w, b.jpg 2x".

    Follows the HTML Standard: a URL may contain commas, and a descriptor ends at one.
    """
    url, width = "", 0.0
    for word in srcset.split():
        while word:
            if not url:  # a URL: up to white space or a comma at its end
                word = word.lstrip(",")
                url, width = word.rstrip(","), _WIDE_ENOUGH / 2
                if url != word:
                    yield url, width
                    url = ""
                break
            descriptor, comma, word = word.partition(",")
            if found := _DESCRIPTOR.fullmatch(descriptor):
                # "1x" counts as the size of the model's input.
                unit = 1 if found.group(2) == "w" else _WIDE_ENOUGH / 2
                width = float(found.group(1)) * unit
            if comma:
                yield url, width
                url = ""
    if url:
        yield url, width


def _inline(url: str, alt: str) -> Picture | None:
    """Returns a picture inside the page: data:image/png;base64,..."""
    header, _, payload = url.lstrip().partition(",")
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    media_type = kind.removeprefix("data:").strip()
    if not kind.startswith("data:") or media_type in _DRAWINGS:
        return None
    data = urllib.parse.unquote_to_bytes(payload.rstrip())
    if parameters[-1:] == ["base64"]:
        try:
            data = base64.b64decode(data + b"==")
        except binascii.Error:
            data = b"damaged " + data[:80]  # not an image, so it is counted as damaged
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Picture(f"data:{media_type},{digest}", data, alt)
