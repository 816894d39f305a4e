"""Reads the members of a tar file, and goes on behind damage.

    512-byte header | content, padded to 512 | header | content | ... | two blocks of zeros

The formats are those of POSIX (ustar and pax) and GNU. The standard library parses the headers. The
loop over them is written here, because the library's loop keeps a list of all members, reads long
names of any length into memory, lets sparse files grow, and ends at the first block that is no
header. Here such a block is a gap: the next header is searched, and its checksum says that it is
one. So a file may consist of several archives, one behind the other, and a hole or a bad block
costs only the members that are in it.
"""

from __future__ import annotations

import dataclasses
import tarfile
from collections.abc import Generator, Iterator
from typing import IO

from data_pipelines.formats.compressed import Lost, is_packed, unpacked
from data_pipelines.page import Reject

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CHUNK = 1 << 20
_WINDOW = 1 << 16  # bytes that are searched for a header at once
_MAX_HEADER = 1 << 20  # bytes of a long name or of extended attributes
_RECORD = 10_240  # bytes; tar pads an archive to a multiple of it
_PADDING = 1 << 20  # bytes of zeros at the end of a file that are no sign of damage
_MAGIC, _MAGIC_AT = b"ustar", 257  # in a header of POSIX or GNU

_FILE, _SPARSE = (b"0", b"\0", b"7"), b"S"
_NO_FILE = (b"5", b"V", b"D", b"N", b"M")  # directories, labels of volumes and the like
_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _ATTRIBUTES_OF_ALL = b"L", b"K", (b"x", b"X"), b"g"


@dataclasses.dataclass(frozen=True)
class Gap:
    """A part of the file without sound members.

    Attributes:
      reason: damaged_part; at the end truncated_file, or "behind the end" for bytes behind a
        complete archive; unreadable_file if nothing in it is a tar.
      detail: what is there.
      within: the member whose content is damaged; None = the gap is between two members.
    """

    reason: str
    detail: str
    within: Member | None = None

    def reject(self, path: str) -> Reject:
        """Returns what a reader yields for it."""
        detail = f"{path}: {self.detail}"
        if self.reason == "behind the end":
            return Reject(self.reason, detail, unit="file")
        return Reject(self.reason, detail, broken=True)


@dataclasses.dataclass
class Member:
    """One member. Its content must be read before the next one is asked for.

    Attributes:
      name: as in the archive.
      is_file: False for links, devices and sparse files.
      size: of its content, in bytes.
      key, suffix: of its name, divided at the first dot of the file name.
      dotted_key, last_suffix: divided at the last dot.
      middle: what is between the first dot and the last.
    """

    name: str
    is_file: bool
    size: int
    _stream: _Stream

    def __post_init__(self) -> None:
        self._left = self.size + -self.size % _BLOCK
        directory, slash, file = self.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        self.key, self.suffix = directory + slash + stem, suffix.lower()
        self.middle, dot, self.last_suffix = self.suffix.rpartition(".")
        self.has_dots = bool(dot)
        self.dotted_key = self.name[: -1 - len(self.last_suffix)] if dot else self.key

    def read(self) -> bytes:
        """Returns the content; less than `size` bytes if there is a gap in it."""
        content = self._stream.read(self._left)
        self._left -= len(content)
        return content[: self.size]

    def skip(self) -> bool:
        """Passes over what is left. Returns False if there is a gap in it."""
        while self._left and (chunk := self._stream.read(min(self._left, _CHUNK))):
            self._left -= len(chunk)
        return not self._left


class _Stream:
    """The bytes of the archive. A gap ends a read.

    Attributes:
      position: number of bytes read.
      lost: the gap that comes next, or None.
    """

    def __init__(self, raw: IO[bytes]):
        head = raw.read(4)
        self._length = -1  # of the file; -1: not known
        if is_packed(head):
            raw.seek(0)
            self._pieces: Iterator[bytes | Lost] = unpacked(raw)  # type: ignore[arg-type]
        else:
            self._length = raw.seek(0, 2)
            raw.seek(0)
            self._pieces = iter(lambda: raw.read(_CHUNK), b"")
        self._piece, self._at = b"", 0
        self.position = 0
        self.lost: Lost | None = None

    def read(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._piece):  # the usual case, for speed
            found, self._at = self._piece[self._at : end], end
            self.position += size
            return found
        parts = []
        while size:
            if self._at == len(self._piece):
                piece = None if self.lost else next(self._pieces, None)
                if isinstance(piece, Lost):
                    self.lost = piece
                if not isinstance(piece, bytes):
                    break
                self._piece, self._at = piece, 0
            part = self._piece[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        found = parts[0] if len(parts) == 1 else b"".join(parts)
        self.position += len(found)
        return found

    def unread(self, data: bytes) -> None:
        self._piece, self._at = data + self._piece[self._at :], 0
        self.position -= len(data)

    def holds(self, size: int) -> bool:
        """Returns False if the file is known to end before so many more bytes."""
        return self._length < 0 or self.position + size <= self._length

    def _pass_gap(self) -> None:
        self.lost = None

    def next_header(self) -> int:
        """Goes to the next sound header. Returns the bytes passed over; -1: there is none."""
        self._pass_gap()
        window, passed_over = b"", 0
        while True:
            fresh = self.read(_WINDOW)
            window += fresh
            at = window.find(_MAGIC, _MAGIC_AT)
            while at >= 0 and at - _MAGIC_AT + _BLOCK <= len(window):
                start = at - _MAGIC_AT
                if _parsed(window[start : start + _BLOCK]):
                    self.unread(window[start:])
                    return passed_over + start
                at = window.find(_MAGIC, at + 1)
            if not fresh and self.lost is None:
                return -1
            if self.lost is not None:
                self._pass_gap()
                window = b""
            passed_over += max(len(window) - _BLOCK, 0)
            window = window[-_BLOCK:]


def members(raw: IO[bytes]) -> Iterator[Member | Gap]:
    """Yields the members except directories, and the gaps between them.

    Args:
      raw: a tar file, plain or compressed by gzip or zstd.

    Raises:
      OSError: the file cannot be read.
    """
    stream = _Stream(raw)
    long_name, attributes = "", dict[str, str]()
    is_tar, start = False, 0  # of the archive: a file can contain several
    while True:
        header = stream.read(_BLOCK)
        if header == _ZEROS:
            is_tar = True
            zeros = _zeros(stream)
            header = stream.read(_BLOCK)
            if not header and stream.lost is None:
                if zeros > _PADDING:
                    yield Gap("truncated_file", f"it ends in {zeros} bytes of zeros")
                return
            info = _parsed(header)
            if info is None:
                passed_over = stream.next_header()
                yield _behind(zeros, passed_over, header)
                if passed_over < 0:
                    return
                long_name, attributes = "", {}
                continue
            at = stream.position - len(header)
            if zeros not in (2 * _BLOCK, _RECORD) and (zeros == _BLOCK or (at - start) % _RECORD):
                yield Gap("damaged_part", f"{zeros} bytes of zeros between two members")
            start = at
        else:
            info = _parsed(header)
        if info is None:
            if not header and stream.lost is None:
                if not is_tar:
                    yield Gap("unreadable_file", "it is empty")
                return  # only the two empty blocks at the end are missing
            what = f"no header, but {header[:16]!r}"
            if not (
                yield from _found_again(
                    stream, what, "truncated_file" if is_tar else "unreadable_file"
                )
            ):
                return
            long_name, attributes = "", {}
            continue
        is_tar = True
        is_extra = info.type in (_LONG_NAME, _LONG_LINK, _ATTRIBUTES_OF_ALL, *_ATTRIBUTES)
        size = info.size
        if attributes.get("size", "").isascii() and attributes.get("size", "").isdecimal():
            size = size if is_extra else int(attributes["size"])
        if size < 0 or (is_extra and size > _MAX_HEADER) or not stream.holds(size):
            name = long_name or info.name
            within = None if is_extra else Member(name, is_file=True, size=size, _stream=stream)
            what = f"{info.name!r:.200} has {size} bytes, it says"
            if not (yield from _found_again(stream, what, within=within)):
                return
            long_name, attributes = "", {}
            continue
        member = Member(long_name or info.name, info.type in _FILE, size, stream)
        if is_extra:
            content = member.read()
            if info.type == _LONG_NAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in _ATTRIBUTES:
                attributes = _attributes(content)
        else:
            if attributes:
                is_sparse = any(name.startswith("GNU.sparse") for name in attributes)
                name = attributes.get("path", member.name)
                member = Member(name, member.is_file and not is_sparse, size, stream)
            long_name, attributes = "", {}
            if info.type == _SPARSE and header[482]:  # blocks with more of its map come first
                while (block := stream.read(_BLOCK)) and block[504:505] not in (b"\0", b""):
                    pass
            if info.type not in _NO_FILE:
                yield member
        if not member.skip():
            if not (yield from _found_again(stream, f"it ends within {member.name!r:.200}")):
                return
            long_name, attributes = "", {}


def _zeros(stream: _Stream) -> int:
    """Passes over blocks of zeros. Returns their bytes, with the one before."""
    zeros = _BLOCK
    while (block := stream.read(_BLOCK)) == _ZEROS:
        zeros += _BLOCK
    stream.unread(block)
    return zeros


def _behind(zeros: int, passed_over: int, header: bytes) -> Gap:
    """Describes what is behind zeros and is no header."""
    detail = f"{zeros} bytes of zeros, then no header, but {header[:16]!r}"
    if passed_over >= 0:
        return Gap("damaged_part", f"{detail}; the next one is {passed_over} bytes later")
    return Gap("behind the end" if zeros >= 2 * _BLOCK else "truncated_file", detail)


def _found_again(
    stream: _Stream, what: str, at_end: str = "truncated_file", within: Member | None = None
) -> Generator[Gap, None, bool]:
    """Goes on at the next header, and yields what was lost before it.

    Args:
      stream: at the gap.
      what: what is wrong.
      at_end: the reason if there is no header any more.
      within: as in `Gap`.

    Returns:
      False if there is none.
    """
    what = f"{what}; {stream.lost.detail}" if stream.lost else what
    passed_over = stream.next_header()
    if passed_over < 0:
        yield Gap(at_end, what, within)
    else:
        detail = f"{what}; the next header is {passed_over} bytes later"
        yield Gap("damaged_part", detail, within)
    return passed_over >= 0


def _parsed(header: bytes) -> tarfile.TarInfo | None:
    """Returns the fields of a header, or None if it is none: its checksum is wrong."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None


def _attributes(content: bytes) -> dict[str, str]:
    """Parses extended attributes: records "LENGTH NAME=VALUE" with a newline at the end.

    LENGTH counts the bytes of the whole record.
    """
    found = {}
    while content:
        length, _, _ = content.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 9 else 0
        if not len(length) + 1 < end <= len(content):
            break
        record = content[len(length) + 1 : end - 1].decode("utf-8", "surrogateescape")
        name, _, value = record.partition("=")
        found[name] = value
        content = content[end:]
    return found
