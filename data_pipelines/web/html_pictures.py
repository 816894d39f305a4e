"""Finds the image that an <img> of a web page refers to.

Handles lazy loading, several sizes to choose from, and images inside the page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from data_pipelines.page import Picture

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
_WIDE_ENOUGH = 640  # pixels: twice the model's input; the smallest size with so many is taken
_LONGEST_URL = 4096
_LONGEST_ALT = 1000


def picture_of(node: Any, attributes: Mapping[str, str | None], base: str) -> Picture | None:
    """Returns the picture of an <img>.

    None for an <img> without a source, for drawings (SVG), and for what is not fetched (blob:,
    javascript:). On pages where scripts load images late, `src` is a placeholder. So the attributes
    that these scripts read come first. Then comes `src`, which old crawlers fetched. A srcset, also
    of the <source>s of a <picture>, is used if `src` is missing or is a placeholder inside the
    page.

    Args:
      node: the element.
      attributes: of the element.
      base: URL that its references are relative to.
    """
    named = (attributes.get(name) for name in _LAZY)
    source = next((value.strip() for value in named if value and not value.startswith("data:")), "")
    inline = attributes.get("src") or ""
    source = source or _of_set(attributes, _LAZY_SETS)
    if not source and not inline.lstrip().startswith("data:"):
        source = inline.strip()
    source = source or _of_set(attributes, ("srcset",)) or _of_picture(node.parent)
    alt = " ".join((attributes.get("alt") or "").split())[:_LONGEST_ALT]
    if not source:
        return _inline(inline.lstrip(), alt) if inline else None
    url = joined(base, source)
    is_drawing = url.partition("?")[0].lower().endswith(".svg")
    is_fetched = url.startswith(("http://", "https://", "file://")) and len(url) <= _LONGEST_URL
    return Picture(url, alt=alt) if is_fetched and not is_drawing else None


def joined(base: str, reference: str) -> str:
    """Returns the absolute URL of a reference without its fragment, or "" if there is none."""
    try:
        return urllib.parse.urljoin(base, reference.strip()).partition("#")[0] if reference else ""
    except ValueError:  # for example an unclosed [ of an IPv6 address
        return ""


def _inline(url: str, alt: str) -> Picture | None:
    """Returns a picture inside the page: data:image/png;base64,..."""
    header, _, payload = url.partition(",")
    media_type = header.removeprefix("data:").partition(";")[0].strip().lower()
    if not header.startswith("data:") or media_type == "image/svg+xml":
        return None
    data = urllib.parse.unquote_to_bytes(payload)
    if header.rstrip().lower().endswith("base64"):
        try:
            data = base64.b64decode(data + b"==")
        except binascii.Error:
            data = b"damaged " + data[:80]  # not an image, so it is counted as damaged
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Picture(f"data:{media_type},{digest}", data, alt)


def _of_picture(parent: Any) -> str:
    """Returns the best image of the <source>s of a <picture>, or ""."""
    node = parent.child if parent is not None and parent.tag == "picture" else None
    while node is not None:
        if node.tag == "source":
            attributes = node.attributes
            if (attributes.get("type") or "") != "image/svg+xml" and (
                found := _of_set(attributes, ("srcset", *_LAZY_SETS))
            ):
                return found
        node = node.next
    return ""


def _of_set(attributes: Mapping[str, str | None], names: tuple[str, ...]) -> str:
    """Returns the smallest image of a srcset that is wide enough, else the widest, else ""."""
    srcset = next((value for name in names if (value := attributes.get(name))), "")
    found: list[tuple[float, str]] = []
    url = ""
    for word in srcset.split():  # "a.jpg 1x, b.jpg 2x"; a URL can contain commas
        if url:
            descriptor, _, following = word.partition(",")
            match = _DESCRIPTOR.fullmatch(descriptor)
            width = 0.0
            if match:  # "640w" is in pixels, and "1x" counts as the size of the model's input
                unit = 1 if match.group(2) == "w" else _WIDE_ENOUGH / 2
                width = float(match.group(1)) * unit
            found.append((width, url))
            url = following
        else:
            url = word
        if url.endswith(","):
            found.append((0.0, url.rstrip(",")))
            url = ""
    if url:
        found.append((0.0, url))
    found = [(width, url) for width, url in found if url and not url.startswith("data:")]
    wide = [entry for entry in found if entry[0] >= _WIDE_ENOUGH]
    return min(wide)[1] if wide else max(found, default=(0.0, ""))[1]
