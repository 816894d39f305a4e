"""Finds and reads the records of WARC files, also of damaged ones.

    FILE.warc.gz: one gzip member per record, or several records in one member
    FILE.warc:    one record after the other

After a damaged stretch, reading continues at the next record that is whole. Of a member with
several records, those before the damage are read. Each stretch that is lost gives one Reject.
"""

from __future__ import annotations

import dataclasses
import io
import re
import threading
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from data_pipelines.formats.compressed import before_damage
from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular
from flamingo_jax.data.files import temporary_file

_members = threading.local()  # the last member with several records that a thread has read

_MAGIC = b"\x1f\x8b\x08"  # gzip, deflate
_GZIP = 31  # zlib's name for a gzip header, window of 32 KiB
_RESERVED = 0xE0  # flags of a gzip header that are always 0
_CHUNK = 1 << 16
_PROBE = 1 << 10  # bytes of a stretch after damage that must begin to unpack to a record
HEAD = 1 << 16  # bytes: the headers of a record must be within the first of them
_LARGEST_RECORD = 1 << 32  # bytes, unpacked; a larger record is a decompression bomb
_IN_MEMORY = 1 << 25  # bytes of an unpacked member; a larger one is on disk
_BETWEEN = 64  # largest number of bytes between two records; the standard says 4
_BREAKS = b"\r\n"
_VERSION = re.compile(rb"WARC/\d\.\d{1,3}[ \t]*\r?\n[A-Za-z-]{1,40}[ \t]*:")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(
    rb"^Content-Length[ \t]*:[ \t]*(\d{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a record is stored.

    Attributes:
      file: path of the WARC file.
      offset: of the first byte of the record, or of the gzip member that holds it.
      length: stored bytes.
      inside: of a member that holds several records: the record's first unpacked byte.
      inside_length: its unpacked bytes; 0 = the record is the whole member.
    """

    file: str
    offset: int
    length: int
    inside: int = 0
    inside_length: int = 0

    def __str__(self) -> str:
        inside = f", byte {self.inside} of its member" if self.inside_length else ""
        return f"{self.file}, record at byte {self.offset}{inside}"


def records(path: str) -> Iterator[tuple[bytes, Place] | Reject]:
    """Yields (first bytes, place) of each record of a file, in order.

    A Reject (damaged) has the reason unreadable_file, truncated_file or damaged_record.
    """
    try:
        with regular(path).open("rb") as file:
            start = file.read(1 << 10)
            if start.startswith(_MAGIC):
                yield from _of_members(file, path)
            elif _VERSION.search(start):
                size = file.seek(0, io.SEEK_END)
                for found in _consecutive(file, size):
                    if isinstance(found, Reject):
                        yield dataclasses.replace(found, detail=f"{path}: {found.detail}")
                    else:
                        head, offset, length = found
                        yield head, Place(path, offset, length)
            else:
                detail = f"{path} is no WARC file: it starts with {start[:16]!r}"
                yield Reject("unreadable_file", detail, broken=True)
    except OSError as error:
        yield Reject("unreadable_file", f"{path}: {error}", broken=True)


def read(place: Place, most: int, file: BinaryIO | None = None) -> bytes:
    """Returns the first `most` bytes of a record, unpacked.

    Args:
      place: of the record.
      most: bytes.
      file: place.file, open for reading.

    Raises:
      OSError: the file cannot be read.
      ValueError: the record cannot be unpacked.
    """
    if place.inside_length:
        member = _kept(place.file, place.offset)
        member.seek(place.inside)
        return member.read(min(place.inside_length, most))
    if file is None:
        with regular(place.file).open("rb") as opened:
            return read(place, most, opened)
    file.seek(place.offset)
    data = file.read(min(place.length, most))
    if not data.startswith(_MAGIC):
        return data
    try:
        return zlib.decompressobj(_GZIP).decompress(data, most)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from error


def _of_members(file: BinaryIO, path: str) -> Iterator[tuple[bytes, Place] | Reject]:
    """Yields the records of the gzip members of a file."""
    offset, lost = 0, -1
    is_cut = False
    while True:
        found = _member(file, offset)
        if isinstance(found, _Member):
            if lost >= 0:
                yield _lost(path, lost)
            lost = -1
            if _is_one_record(found):
                yield found.head, Place(path, offset, found.length)
            else:
                yield from _inside(path, offset, found)
            offset += found.length
            continue
        if found in ("truncated", "damaged") and (part := _sound_part(path, offset)):
            if lost >= 0:
                yield _lost(path, lost)
            lost = -1
            for each in _inside(path, offset, part):
                if not (isinstance(each, Reject) and each.reason == "truncated_file"):
                    yield each
        if lost < 0 and found != "end":
            lost, is_cut = offset, found == "truncated" and _may_begin_record(file, offset)
        following, is_empty = (None, True) if found == "end" else _next_member(file, offset)
        if lost == offset and is_empty:  # only zeros up to there: nothing is lost
            lost = -1
        if following is None:
            break
        offset = following
    if lost >= 0:
        detail = f"{path}: it ends within the record at byte {lost}"
        yield Reject("truncated_file", detail, broken=True) if is_cut else _lost(path, lost)


def _lost(path: str, start: int) -> Reject:
    detail = f"{path}: the record at byte {start} cannot be unpacked"
    return Reject("damaged_record", detail, broken=True)


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


def _is_one_record(member: _Member) -> bool:
    """Returns True if a member ends after its first record, or its length is not stated."""
    end = _HEAD_END.search(member.head)
    length = _LENGTH.search(member.head, 0, end.start()) if end else None
    if not end or not length:
        return True
    return member.size <= end.end() + int(length.group(1)) + _BETWEEN


def _sound_part(path: str, offset: int) -> _Member | None:
    """Returns what is before the damage of a member, or None if that is not several records."""
    with _unpacked(path, offset) as content:
        size = content.seek(0, io.SEEK_END)
        content.seek(0)
        part = _Member(0, size, content.read(HEAD))
    return None if _is_one_record(part) else part


def _inside(path: str, offset: int, member: _Member) -> Iterator[tuple[bytes, Place] | Reject]:
    """Yields the records of a member with several records."""
    with _unpacked(path, offset) as content:
        for found in _consecutive(content, member.size):
            if isinstance(found, Reject):
                detail = f"{path}: the gzip member at byte {offset}, unpacked: {found.detail}"
                yield dataclasses.replace(found, detail=detail)
            else:
                head, inside, length = found
                yield head, Place(path, offset, member.length, inside, length)


def _kept(path: str, offset: int) -> BinaryIO:
    """Returns the content of a gzip member. Each thread keeps the last one that it has read."""
    kept = _members.__dict__
    if kept.get("key") != (path, offset):
        if "content" in kept:
            kept.pop("content").close()
        kept["key"], kept["content"] = None, _unpacked(path, offset)
        kept["key"] = path, offset
    return kept["content"]


def _unpacked(path: str, offset: int) -> BinaryIO:
    """Returns the content of a gzip member up to its damage, in memory or in a temporary file.

    Raises:
      OSError: the file cannot be read, or the disk is full.
    """
    content: BinaryIO = io.BytesIO()
    unpacker = zlib.decompressobj(_GZIP)
    with regular(path).open("rb") as file:
        file.seek(offset)
        while not unpacker.eof and (packed := unpacker.unconsumed_tail or file.read(_CHUNK)):
            before = unpacker.copy()
            try:
                content.write(unpacker.decompress(packed, 1 << 20))
            except zlib.error:
                content.write(before_damage(before, packed)[0])
                break
            if isinstance(content, io.BytesIO) and content.tell() > _IN_MEMORY:
                start = content.getbuffer()
                # It is removed from the disk when it is closed.
                content = temporary_file()
                content.write(start)
    return content


def _member(file: BinaryIO, offset: int) -> _Member | str:
    """Reads the gzip member at an offset.

    Returns:
      The member, or on failure "end", "truncated", "damaged", "no record" or "too large".
    """
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
        if len(head) < HEAD:
            head += unpacked[: HEAD - len(head)]
            if not head.startswith(b"WARC/"[: len(head)]):
                return "no record"
        # The limit is for each record; a member of many records is as long as they are.
        if size > _LARGEST_RECORD and size > 50 * length:
            return "too large"
    return _Member(length - len(unpacker.unused_data), size, head)


def _next_member(file: BinaryIO, offset: int) -> tuple[int | None, bool]:
    """Returns where the next member with a record starts, and whether only zeros are before it."""
    is_empty = True
    before, start = b"", offset  # bytes that are not searched yet, and their place
    while True:
        file.seek(start)
        before = file.read(_CHUNK + _PROBE)
        position = before.find(_MAGIC, 1 if start == offset else 0)
        while 0 <= position < _CHUNK:
            if _begins_record(before[position : position + _PROBE]):
                return start + position, is_empty and not before[:position].strip(b"\0")
            position = before.find(_MAGIC, position + 1)
        is_empty = is_empty and not before[:_CHUNK].strip(b"\0")
        if len(before) <= _CHUNK:
            return None, is_empty
        start += _CHUNK


def _may_begin_record(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    start = file.read(_PROBE)
    return start.startswith(_MAGIC[: len(start)]) and (len(start) < 64 or _begins_record(start))


def _begins_record(packed: bytes) -> bool:
    if len(packed) < 10 or packed[3] & _RESERVED:
        return False
    try:
        start = zlib.decompressobj(_GZIP).decompress(packed, 16)
    except zlib.error:
        return False
    return bool(start) and start.startswith(b"WARC/"[: len(start)])


def _consecutive(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int] | Reject]:
    """Yields (first bytes, offset, length) of records that follow each other without packing.

    A record with no length, or with one that is wrong, ends where the next one starts.
    """
    offset = _next_record(file, 0, size)
    if not _is_empty(file, 0, offset):
        yield _no_record(0)
    while offset < size:
        file.seek(offset)
        head = file.read(HEAD)
        end = _HEAD_END.search(head)
        if not end or _VERSION.search(head, 1, end.start()):  # the headers are cut
            yield _no_record(offset)
            offset = _next_record(file, offset + 1, size)
            continue
        stated = _LENGTH.search(head, 0, end.start())
        after = offset + end.end() + (int(stated.group(1)) if stated else 0)
        following = _record_at(file, after, size) if stated else -1
        if following >= 0:
            yield head[: following - offset], offset, following - offset
            offset = following
            continue
        is_cut = after > size
        follows = after < size and stated and _is_ended(file, after)
        offset_of_next = _next_record(file, after if follows else offset + end.end(), size)
        if is_cut and offset_of_next == size:
            yield Reject(
                "truncated_file", f"it ends within the record at byte {offset}", broken=True
            )
            return
        stop = after if follows else offset_of_next
        yield head[: stop - offset], offset, stop - offset
        if follows and not _is_empty(file, after, offset_of_next):
            yield _no_record(after)
        offset = offset_of_next


def _no_record(offset: int) -> Reject:
    return Reject("damaged_record", f"no record starts at byte {offset}", broken=True)


def _record_at(file: BinaryIO, offset: int, size: int) -> int:
    """Returns where the record after an end starts: there or after line breaks; -1 = nowhere."""
    if offset > size:
        return -1
    file.seek(offset)
    between = file.read(_BETWEEN)
    rest = between.lstrip(_BREAKS)
    if not rest:
        return size if offset + len(between) == size else -1
    return offset + len(between) - len(rest) if rest.startswith(b"WARC/") else -1


def _is_ended(file: BinaryIO, offset: int) -> bool:
    """Returns True if the two line breaks that end a record are at an offset."""
    file.seek(offset)
    return _HEAD_END.match(file.read(4)) is not None


def _is_empty(file: BinaryIO, start: int, stop: int) -> bool:
    """Returns True if a stretch has only zeros, white space and a byte order mark."""
    while start < stop:
        file.seek(start)
        if file.read(min(_CHUNK, stop - start)).removeprefix(b"\xef\xbb\xbf").strip(b"\0 \t\r\n"):
            return False
        start += _CHUNK
    return True


def _next_record(file: BinaryIO, offset: int, size: int) -> int:
    """Returns where the next record starts, at the start of a line; `size` = nowhere."""
    while offset < size:
        file.seek(offset)
        data = file.read(_CHUNK + _PROBE)
        found = _VERSION.search(data)
        while found and found.start() < _CHUNK:
            return offset + found.start()
        offset += _CHUNK
    return size
