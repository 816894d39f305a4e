"""Tells pages and images of a crawl from other files, as browsers do.

The type that the server states decides. If it states none, or one that means "any bytes", the first
bytes decide, by the patterns of the MIME Sniffing Standard (mimesniff.spec.whatwg.org). An image is
recognised by its first bytes under any type, as in an <img>.
"""

from __future__ import annotations

import enum
import re

WITHIN = 1024  # bytes that are looked at


class Content(enum.Enum):
    """What a response contains."""

    PAGE = enum.auto()
    IMAGE = enum.auto()
    OTHER = enum.auto()


_PAGES = ("text/html", "application/xhtml+xml")
_XML = ("application/xml", "text/xml")
_DRAWING = "image/svg+xml"
# Types that servers and archives give to anything.
_ANYTHING = frozenset(
    "application/octet-stream binary/octet-stream application/unknown unknown/unknown */* "
    "application/binary application/force-download application/x-download content/unknown "
    "application/x-unknown-content-type".split()
)
_TYPE = re.compile(r"[\w!#$&^.+-]{1,60}/[\w!#$&^.+-]{1,60}|\*/\*")

_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_FEW = b"BM"  # a magic number so short that texts begin with it
_AVIF = (b"avif", b"avis", b"mif1", b"heic", b"heix")
_PAGE_START = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s{0,512}<\?xml[^>]{0,200}>)?(?:\s{0,512}<!--[^>]{0,500}-->){0,3}\s{0,512}"
    rb"<(?:!doctype\s+html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|meta|"
    rb"link|center|article|main|!--)[\s>/]",
    re.IGNORECASE,
)
_ROOT_IS_HTML = re.compile(rb"<(?:\w{1,20}:)?html[\s>]|<!doctype\s+html", re.IGNORECASE)


def essence(content_type: str) -> str:
    """Returns the media type in a Content-Type: lower case, without parameters; "" = none.

    Of several types the last one counts.
    """
    found = ""
    for part in content_type.split(","):
        name = part.partition(";")[0].strip().lower()
        if _TYPE.fullmatch(name):
            found = name
    return found


def is_generic(media_type: str) -> bool:
    """Returns True for a type of which the archive may know better."""
    return not media_type or media_type in _ANYTHING or media_type == "text/plain"


def is_told_by_start(media_type: str) -> bool:
    """Returns True for a type under which the first bytes decide."""
    return not media_type or media_type in _ANYTHING or media_type in _XML


def content_of(media_type: str, start: bytes) -> Content:
    """Returns what a response contains.

    Args:
      media_type: as stated; "" = not stated.
      start: first bytes of the body, without its encodings.
    """
    if media_type in _PAGES:
        return Content.IMAGE if is_image(start) else Content.PAGE
    if is_image(start) or (media_type.startswith("image/") and media_type != _DRAWING):
        return Content.IMAGE
    if not media_type or media_type in _ANYTHING:
        return Content.PAGE if _PAGE_START.match(start) else Content.OTHER
    is_page = media_type in _XML and _ROOT_IS_HTML.search(start)
    return Content.PAGE if is_page else Content.OTHER


def is_image(start: bytes) -> bool:
    """Returns True for the first bytes of an image that is not a drawing."""
    if start[4:8] == b"ftyp":
        return start[8:12] in _AVIF
    if start.startswith(b"RIFF"):
        return start[8:12] == b"WEBP"
    if start.startswith(_FEW):
        return len(start) > 14 and start[6:10] == b"\0\0\0\0"  # reserved bytes of a bitmap
    return start.startswith(_IMAGES)
