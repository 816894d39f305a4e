"""Reads WARC files, the format of web archives: pages and images of a crawl, by random access.

    FILE.warc.gz, one gzip member per record
      --index-->  Entry(url, media type, place), in one pass with constant memory
      --read-->   Response(body)

Only `response` records with status 200 count. Other records (requests, revisits, redirects, errors,
metadata) are skipped and not counted. A file that ends early yields its complete records and then a
Reject. After a damaged member, reading continues at the next member that contains a record.
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
_HEAD = 1 << 16  # bytes: the headers of a record must be within the first of them
_LARGEST_RECORD = 1 << 32  # bytes, unpacked; a larger record is a decompression bomb
_OVERHEAD = 1 << 17  # bytes of a record in addition to its body: headers, packing, sizes of chunks
_BETWEEN = 64  # largest number of bytes between two records; the standard says 4
_EXPECTED = (
    "one gzip member per record, as crawlers write them (warcio recompress makes such files)"
)
_IS_RESPONSE = re.compile(rb"^WARC-Type:[ \t]*response[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^Content-Length:[ \t]*(\d{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_CHARSET = re.compile(r"charset\s*=\s*(?:[\"']\s*)?([\w.:-]{1,40})", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|avif)$", re.IGNORECASE)
_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a record is stored.

    Attributes:
      file: path of the WARC file.
      offset: of the record's first byte.
      length: stored bytes.
    """

    file: str
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the headers of a response say.

    Attributes:
      url: the URL that was requested.
      media_type: lower case, without parameters; "" = not stated.
      place: where the response is stored.
    """

    url: str
    media_type: str
    place: Place

    @property
    def is_html(self) -> bool:
        return self.media_type in HTML_TYPES

    @property
    def is_image(self) -> bool:
        """True for an image that is not SVG. Without a type, the file name decides."""
        if self.media_type in _UNTYPED:
            return bool(_IMAGE_NAME.search(self.url.partition("?")[0]))
        return self.media_type.startswith("image/") and self.media_type != "image/svg+xml"


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


def index(path: str) -> Iterator[Entry | Reject]:
    """Yields the entries of all pages and images of a file, in order, in one pass.

    The memory is constant. A Reject (damaged) has the reason unreadable_file, truncated_file or
    damaged_record; the last one comes once for each stretch of the file that is lost.
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
                detail = f"{path} is no WARC file: it starts with {start!r}"
                yield Reject("unreadable_file", detail, broken=True)
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
      max_bytes: largest body. Of a longer one max_bytes + 1 bytes are returned, so that the caller
        can detect it.
      file: place.file, open for reading, for a caller that reads several entries from it.

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
    """Parses the first bytes of a record. Returns None for a record that is skipped."""
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
    """Yields (offset, length, first unpacked bytes) of each gzip member that contains a record."""
    offset, lost = 0, None
    while True:
        found = _member(file, offset)
        if isinstance(found, _Member):
            if lost:
                yield _not_unpacked(lost[0])
            if _has_more_records(found):
                detail = f"the gzip member at byte {offset} holds several records"
                yield Reject("unreadable_file", f"{detail}; expected {_EXPECTED}", broken=True)
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
            yield _not_unpacked(start)
        elif what == "truncated":
            yield _ends_within(start)
        return


def _not_unpacked(start: int) -> Reject:
    detail = f"the record at byte {start} cannot be unpacked"
    return Reject("damaged_record", detail, broken=True)


def _ends_within(start: int) -> Reject:
    return Reject("truncated_file", f"it ends within the record at byte {start}", broken=True)


@dataclasses.dataclass(frozen=True)
class _Member:
    """A gzip member.

    Attributes:
      length: bytes in the file.
      size: unpacked bytes.
      head: the first unpacked bytes.
    """

    length: int
    size: int
    head: bytes


def _has_more_records(member: _Member) -> bool:
    """Returns True if a member continues after its first record, which two newlines end."""
    headers, blank, _ = member.head.partition(b"\r\n\r\n")
    length = _LENGTH.search(headers)
    return (
        length is not None
        and member.size > len(headers) + len(blank) + int(length.group(1)) + _BETWEEN
    )


def _member(file: BinaryIO, offset: int) -> _Member | str:
    """Reads the gzip member at an offset. Returns "end", "truncated" or "damaged" on failure."""
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
    """Does the same as `_members` for an uncompressed file. After a damaged record all is lost."""
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
            yield _ends_within(offset)
            return
        yield offset, whole, head[:whole]
        offset += whole
