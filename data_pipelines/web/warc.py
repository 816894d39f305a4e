"""Reads WARC files, the format of web archives: the pages and images of a crawl, by random access.

    FILE.warc.gz = one gzip member per record --index--> Entry(url, media type, place), one pass, nothing held --read--> Response(body)

What counts is a `response` with status 200; other records (requests, revisits, redirects, errors,
metadata) are passed over, without being counted. A file that ends early gives what is whole of it
and then a Reject; behind a damaged member reading goes on at the next one that holds a record.
"""

from __future__ import annotations

import dataclasses
import io
import re
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

from etils import epath

from data_pipelines.page import Reject

SUFFIXES = (".warc.gz", ".warc")
HTML_TYPES = ("text/html", "application/xhtml+xml")

_MAGIC = b"\x1f\x8b\x08"  # gzip, deflate
_GZIP = 31  # zlib's name for a gzip header, window of 32 KiB
_CHUNK = 1 << 16
_HEAD = 1 << 16  # bytes of a record that its headers are looked for in
_LARGEST_RECORD = 1 << 32  # unpacked; beyond, it is a bomb
_OVERHEAD = 1 << 17  # of a record beside its body: headers, packing, sizes of chunks
_BETWEEN = 64  # bytes between two records; 4 by the standard
_EXPECTED = (
    "one gzip member per record, as crawlers write them (warcio recompress makes such files)"
)
_IS_RESPONSE = re.compile(rb"^WARC-Type:[ \t]*response[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|avif)$", re.IGNORECASE)
_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a record lies.

    Attributes:
      file: path of the WARC file.
      offset: of its first byte there.
      length: in bytes, as it is stored.
    """

    file: str
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the headers of a response say.

    Attributes:
      url: that it is the response to.
      media_type: lower case, without parameters; "" = not stated.
      place: where it lies.
    """

    url: str
    media_type: str
    place: Place

    @property
    def is_html(self) -> bool:
        """Whether it is a page."""
        return self.media_type in HTML_TYPES

    @property
    def is_image(self) -> bool:
        """Whether it is an image other than a drawing; what has no type is judged by its name."""
        if self.media_type in _UNTYPED:
            return bool(_IMAGE_NAME.search(self.url.partition("?")[0]))
        return self.media_type.startswith("image/") and self.media_type != "image/svg+xml"


@dataclasses.dataclass(frozen=True)
class Response:
    """A response, unpacked.

    Attributes:
      url: that it is the response to.
      body: its content, without encodings of the transfer.
      charset: that the archive identified, else that the server stated; "" = neither.
    """

    url: str
    body: bytes
    charset: str


def index(path: str) -> Iterator[Entry | Reject]:
    """Yields the entries of all pages and images of a file, in order, in one pass and constant memory.

    A Reject (damaged) stands for: unreadable_file, truncated_file, damaged_record; the last one
    once for each stretch that is lost.
    """
    try:
        with epath.Path(path).open("rb") as file:
            start = file.read(len(_MAGIC))
            file.seek(0)
            if start == _MAGIC:
                records = _members(file)
            elif start == b"WAR":
                records = _plain(file)
            else:
                yield Reject(
                    "unreadable_file",
                    f"{path} is no WARC file: it starts with {start!r}",
                    broken=True,
                )
                return
            for record in records:
                if isinstance(record, Reject):
                    yield dataclasses.replace(record, detail=f"{path}: {record.detail}")
                    continue
                offset, length, head = record
                entry = _entry(head, Place(path, offset, length))
                if isinstance(entry, Reject) or (entry and (entry.is_html or entry.is_image)):
                    yield entry
    except OSError as error:
        yield Reject("unreadable_file", f"{path}: {error}", broken=True)


def read(place: Place, max_bytes: int, file: BinaryIO | None = None) -> Response | Reject:
    """Reads one response by random access.

    Args:
      place: of an entry.
      max_bytes: of the body; of a longer one max_bytes + 1 are returned, so that it is seen to be
          too long.
      file: place.file, open for reading, where several are read from it.

    Returns:
      The response, or a Reject (damaged) for damaged_record or unreadable_file.
    """
    most = max_bytes + _OVERHEAD
    try:
        if file is None:
            with epath.Path(place.file).open("rb") as opened:
                return read(place, max_bytes, opened)
        file.seek(place.offset)
        data = file.read(min(place.length, most))
    except OSError as error:
        return Reject("unreadable_file", f"{place.file}: {error}", broken=True)
    try:
        if data.startswith(_MAGIC):
            data = zlib.decompressobj(_GZIP).decompress(data, most)
        record = _parsed(data)
        encoding = _http_header(record, "content-encoding").strip().lower()
        if encoding not in ("identity", "none", "") and encoding not in _known_encodings():
            return Reject("unknown_encoding", f"{place}: {encoding!r:.40}", broken=True)
        body = _at_most(record.content_stream(), max_bytes + 1)
    except Exception as error:  # noqa: BLE001  warcio raises nearly anything on damaged records
        return Reject("damaged_record", f"{place}: {error!r}", broken=True)
    identified = record.rec_headers.get_header("WARC-Identified-Content-Charset")
    stated = _CHARSET.search(_http_header(record, "content-type"))
    return Response(_url(record), body, identified or (stated.group(1) if stated else ""))


def _entry(head: bytes, place: Place) -> Entry | Reject | None:
    """The entry of a record by its first bytes; None for one that is passed over."""
    if not _IS_RESPONSE.search(head.partition(b"\r\n\r\n")[0]):
        return None
    try:
        record = _parsed(head)
        if record.http_headers is None or record.http_headers.get_statuscode() != "200":
            return None
        content_type = _http_header(record, "content-type")
        media_type = content_type.partition(";")[0].strip().lower()
        return Entry(_url(record), media_type, place)
    except Exception as error:  # noqa: BLE001  warcio raises nearly anything on damaged records
        return Reject("damaged_record", f"{place}: {error!r}", broken=True)


def _parsed(data: bytes) -> Any:
    from warcio.recordloader import ArcWarcRecordLoader

    return ArcWarcRecordLoader().parse_record_stream(io.BytesIO(data), known_format="warc")


def _known_encodings() -> Collection[str]:
    """Returns the content encodings that warcio unpacks."""
    from warcio.bufferedreaders import BufferedReader

    return BufferedReader.get_supported_decompressors()


def _http_header(record: Any, name: str) -> str:
    return record.http_headers.get_header(name) or ""


def _url(record: Any) -> str:
    return (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")


def _at_most(stream: Any, size: int) -> bytes:
    parts, left = [], size
    while left > 0 and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _members(file: BinaryIO) -> Iterator[tuple[int, int, bytes] | Reject]:
    """Yields (offset, length, first bytes unpacked) of each gzip member that holds a record."""
    offset, lost = 0, None
    while True:
        found = _member(file, offset)
        if isinstance(found, _Member):
            if lost:
                yield Reject(
                    "damaged_record",
                    f"the record at byte {lost[0]} cannot be unpacked",
                    broken=True,
                )
            if _holds_more(found):
                yield Reject(
                    "unreadable_file",
                    f"the gzip member at byte {offset} holds several records; expected {_EXPECTED}",
                    broken=True,
                )
                return
            yield offset, found.length, found.head
            offset, lost = offset + found.length, None
            continue
        lost = lost or (offset, found)
        following = None if found == "end" else _next_magic(file, offset + 1)
        if following is not None:
            offset = following
            continue
        start, what = lost
        if what == "damaged":
            yield Reject(
                "damaged_record", f"the record at byte {start} cannot be unpacked", broken=True
            )
        elif what == "truncated":
            yield Reject(
                "truncated_file", f"it ends within the record at byte {start}", broken=True
            )
        return


@dataclasses.dataclass(frozen=True)
class _Member:
    """A gzip member: its bytes in the file, its bytes unpacked, and the first of these."""

    length: int
    size: int
    head: bytes


def _holds_more(member: _Member) -> bool:
    """Whether a member goes on behind its first record, which two newlines end."""
    headers, blank, _ = member.head.partition(b"\r\n\r\n")
    length = _LENGTH.search(headers)
    return (
        length is not None
        and member.size > len(headers) + len(blank) + int(length.group(1)) + _BETWEEN
    )


def _member(file: BinaryIO, offset: int) -> _Member | str:
    """The gzip member at an offset, or "end", "truncated", "damaged"."""
    file.seek(offset)
    unpacker, head, size, length = zlib.decompressobj(_GZIP), b"", 0, 0
    while not unpacker.eof:
        packed = unpacker.unconsumed_tail
        if not packed:
            packed = file.read(_CHUNK)
            if not packed:
                return "truncated" if length else "end"
            length += len(packed)
        try:
            unpacked = unpacker.decompress(packed, 1 << 20)
        except zlib.error:
            return "damaged"
        size += len(unpacked)
        if len(head) < _HEAD:
            head += unpacked[: _HEAD - len(head)]
            if not head.startswith(b"WARC/"[: len(head)]):
                return "damaged"
        if size > _LARGEST_RECORD:
            return "damaged"
    return _Member(length - len(unpacker.unused_data), size, head)


def _next_magic(file: BinaryIO, offset: int) -> int | None:
    file.seek(offset)
    before = b""
    while chunk := file.read(_CHUNK):
        position = (before + chunk).find(_MAGIC)
        if position >= 0:
            return offset - len(before) + position
        offset += len(chunk)
        before = (before + chunk)[1 - len(_MAGIC) :]
    return None


def _plain(file: BinaryIO) -> Iterator[tuple[int, int, bytes] | Reject]:
    """The same of a file that is not packed; what follows a damaged record there is lost."""
    size = file.seek(0, io.SEEK_END)
    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(_HEAD)
        headers, blank, _ = head.partition(b"\r\n\r\n")
        length = _LENGTH.search(headers)
        if not head.startswith(b"WARC/") or not blank or not length:
            yield Reject("damaged_record", f"no record starts at byte {offset}", broken=True)
            return
        whole = len(headers) + len(blank) + int(length.group(1)) + len(b"\r\n\r\n")
        if offset + whole > size:
            yield Reject(
                "truncated_file", f"it ends within the record at byte {offset}", broken=True
            )
            return
        yield offset, whole, head[:whole]
        offset += whole
