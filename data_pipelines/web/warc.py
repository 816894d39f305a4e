"""Reads WARC files, the format of web archives: pages and images of a crawl, by random access.

    FILE.warc.gz  --warc_records-->  places of records
      --index-->  Entry(url, content, place), Alias(url, target), in one pass with constant memory
      --read-->   Response(body)

Pages and images are `response` records with status 200 or 203, and `resource` records. A redirect
or a `revisit` record gives a URL another URL's image. Other responses with status 200 are counted
by their media type. Other records (requests, errors, metadata) are skipped and not counted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import BinaryIO

from data_pipelines.page import Reject
from data_pipelines.web import http_message, media_types, warc_records
from data_pipelines.web.charsets import label_in
from data_pipelines.web.http_message import Head, Message
from data_pipelines.web.media_types import Content
from data_pipelines.web.urls import resolve, same_url
from data_pipelines.web.warc_records import Place

SUFFIXES = (".warc.gz", ".warc")

_OVERHEAD = 1 << 17  # bytes of a record in addition to its body: headers, packing, sizes of chunks
_IS_READ = re.compile(
    rb"^WARC-Type[ \t]*:[ \t]*(?:response|resource|revisit)\b", re.IGNORECASE | re.MULTILINE
)
_FOUND = (200, 203)
_MOVED = (301, 302, 303, 307, 308)
MOST_HOPS = 5  # redirects from a URL to its content
_MOST_TYPES = 100  # media types that are counted by name in one file


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the headers and first bytes of a record say.

    Attributes:
      url: the URL that was requested.
      content: a page or an image.
      place: where the record is stored.
      digest: of the payload, as the archive states it; "" = not stated.
    """

    url: str
    content: Content
    place: Place
    digest: str = ""

    @property
    def is_html(self) -> bool:
        return self.content is Content.PAGE

    @property
    def is_image(self) -> bool:
        return self.content is Content.IMAGE


@dataclasses.dataclass(frozen=True)
class Alias:
    """A URL whose content is stored under another one.

    Attributes:
      url: the URL that was requested.
      target: the URL under which the content may be stored; "" = unknown.
      digest: of the content; "" = unknown.
    """

    url: str
    target: str
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class Response:
    """An unpacked response.

    Attributes:
      url: the URL that was requested.
      body: content, without the encodings of the transfer.
      charset: as identified by the archive, else as stated by the server; "" = neither.
    """

    url: str
    body: bytes
    charset: str


class ImagePlaces:
    """The places of the images of one file."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}  # by URL, and by the digest of the content
        self._aliases: dict[str, str] = {}

    def add(self, entry: Entry | Alias) -> None:
        """Adds an image, or a URL that leads to one. Of equal URLs the first is kept."""
        key = same_url(entry.url)
        if isinstance(entry, Entry):
            self._places.setdefault(key, entry.place)
            if entry.digest:
                self._places.setdefault(entry.digest, entry.place)
            return
        target = same_url(entry.target)
        # A revisit that names no other URL shows content that is stored with the same digest.
        self._aliases.setdefault(key, target if target not in ("", key) else entry.digest)

    def find(self, url: str) -> Place | None:
        """Returns the place of the image of a URL, or None. Follows redirects and revisits."""
        key = same_url(url)
        for _ in range(MOST_HOPS + 1):
            if place := self._places.get(key):
                return place
            key = self._aliases.get(key, "")
        return None


def index(path: str) -> Iterator[Entry | Alias | Reject]:
    """Yields the entries of all pages and images of a file, in order, in one pass.

    The memory is constant. A damaged Reject has the reason unreadable_file, truncated_file or
    damaged_record; one comes for each stretch of the file that is lost. A Reject of the unit "file"
    is a response that is neither page nor image; its reason is the media type.
    """
    types: set[str] = set()
    for record in warc_records.records(path):
        if isinstance(record, Reject):
            yield record
            continue
        found = _indexed(*record)
        if isinstance(found, Reject) and found.unit == "file" and found.reason not in types:
            if len(types) == _MOST_TYPES:
                found = dataclasses.replace(found, reason="other types")
            else:
                types.add(found.reason)
        if found is not None:
            yield found


def read(place: Place, max_bytes: int, file: BinaryIO | None = None) -> Response | Reject:
    """Reads one response by random access.

    Args:
      place: of an entry.
      max_bytes: largest body. Of a longer one max_bytes + 1 bytes are returned, so that the caller
        can detect it.
      file: place.file, open for reading, for a caller that reads several entries from it.

    Returns:
      The response, or a damaged Reject: unreadable_file, damaged_record, or truncated_body if it
      was sent or stored in part.
    """
    try:
        data = warc_records.read(place, max_bytes + _OVERHEAD, file)
    except (OSError, ValueError) as error:
        return Reject("unreadable_file", f"{place}: {error}", broken=True)
    text, block = http_message.split(data)
    head = Head(text)
    message = _message(head, _without_end(head, block))
    if message is None:
        return Reject("damaged_record", f"{place}: it holds no HTTP response", broken=True)
    try:
        body, is_cut = http_message.unpacked(message, max_bytes + 1)
    except ValueError as error:
        return Reject("damaged_record", f"{place}: {error}", broken=True)
    if is_cut and len(body) <= max_bytes:
        detail = f"{place}: it ends after {len(body)} bytes, before its end"
        return Reject("truncated_body", detail, broken=True)
    stated = label_in(message.head.first("content-type"))
    return Response(_url(head), body, head.first("warc-identified-content-charset") or stated)


def _indexed(data: bytes, place: Place) -> Entry | Alias | Reject | None:
    """Judges a record by its first bytes. Returns None for a record that is skipped."""
    if not _IS_READ.search(data, 0, data.find(b"\n\r\n") + 1 or len(data)):
        return None
    text, block = http_message.split(data)
    head = Head(text)
    url, kind = _url(head), head.first("warc-type").lower()
    if kind not in ("response", "resource", "revisit"):
        return None
    if not url.lower().startswith(("http://", "https://")):
        return None  # DNS answers, screenshots, lists of the crawler
    digest = head.first("warc-payload-digest")
    if kind == "revisit":
        return Alias(url, head.first("warc-refers-to-target-uri").strip("<>"), digest)
    message = _message(head, block)
    if message is None:
        detail = f"{place}: it holds no HTTP response"
        return Reject("damaged_record", detail, broken=True)
    if message.status in _MOVED:
        return Alias(url, resolve(message.head.first("location"), url))
    if message.status not in _FOUND:
        return None
    media_type = media_types.essence(message.head.first("content-type"))
    if media_types.is_generic(media_type):
        identified = media_types.essence(head.first("warc-identified-payload-type"))
        media_type = media_type if media_types.is_generic(identified) else identified
    content = media_types.content_of(media_type, _start(message, media_type))
    if content is Content.OTHER:
        return Reject(media_type or "no type", unit="file")
    return Entry(url, content, place, digest)


def _message(head: Head, block: bytes) -> Message | None:
    """Returns the HTTP response in a record; a `resource` record is one without headers."""
    if head.first("warc-type").lower() == "resource":
        return Message(200, Head(f"Content-Type: {head.first('content-type')}"), block)
    return http_message.response(block)


def _without_end(head: Head, block: bytes) -> bytes:
    """Returns the block of a record without the two line breaks that end the record."""
    stated = head.first("content-length")
    length = int(stated) if stated.isascii() and stated.isdigit() else len(block) + 1
    if length <= len(block) and not block[length:].strip(b"\r\n"):
        return block[:length]
    # The length is missing or wrong.
    ends = (end for end in (b"\r\n\r\n", b"\n\n") if block.endswith(end))
    return block.removesuffix(next(ends, b""))


def _start(message: Message, media_type: str) -> bytes:
    """Returns the first bytes of a body, without its encodings if they decide what it is."""
    start = message.block[: 2 * media_types.WITHIN]
    is_packed = message.head.first("content-encoding") or message.head.first("transfer-encoding")
    if not is_packed or not media_types.is_told_by_start(media_type):
        return start
    try:
        return http_message.unpacked(message._replace(block=start), media_types.WITHIN)[0]
    except ValueError:
        return b""


def _url(head: Head) -> str:
    return head.first("warc-target-uri").strip("<> ")
