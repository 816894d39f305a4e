"""Reads rows of JSON lines, plain or compressed, in bounded memory.

A damaged line yields a Reject, and reading continues; behind a damaged part of the compression too.
A plain file is read in parts, each by one worker. A line belongs to the part in which it starts. A
compressed file is one part. The first bytes say how a file is compressed, not its name.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath

from data_pipelines.formats.compressed import PIECE, Lost, is_packed, unpacked
from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular
from flamingo_jax.data.files import has_suffix, is_clutter

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zip", ".json.gz", ".json.zst", ".ndjson")
MAX_LINE = 64 << 20  # bytes; a longer line is no document, and is skipped
MAX_VALUES = 4_000_000  # of a line: each takes up to 60 bytes of memory
MAX_OBJECTS = 1_000_000  # objects and lists of a line: each takes up to 230 bytes of memory
PART = 128 << 20  # bytes of a plain file for one worker
_COMPRESSED = (".gz", ".zst", ".zip")
# Damage, a member that needs a password, or a compression that Python does not know.
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, struct.error),
    *(EOFError, zlib.error),
)
_ZIP, _EMPTY_ZIP = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_DIRECTORY = 16 << 20  # bytes of the list of members of a .zip; each takes 500 bytes of memory


@dataclasses.dataclass(frozen=True)
class Lines:
    """A part of a file.

    Attributes:
      path: the file.
      start: first byte of the part.
      stop: first byte of the next part; -1: the end of the file.
    """

    path: str
    start: int = 0
    stop: int = -1


def parts(path: str, size: int = PART) -> list[Lines]:
    """Returns the parts of a file in order.

    A plain file has parts of about `size` bytes, a compressed file has one part.
    """
    try:
        with regular(path).open("rb") as file:
            packing = _packing(file, path)
        length = epath.Path(path).stat().length
    except OSError:  # a worker counts it
        return [Lines(path)]
    if packing:
        return [Lines(path)]
    starts = list(range(0, max(length, 1), size))
    return [Lines(path, start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]


def rows(part: Lines) -> Iterator[dict[str, Any] | Reject]:
    """Yields the objects of the lines of a part; blank lines are skipped.

    A line that is not an object yields a Reject for broken_text (not UTF-8), not_json,
    not_an_object, line_too_long or too_many_values. A damaged part of the compression yields
    damaged_part for what is lost there. A file that ends within its compression, or fails while
    it is read, yields truncated_file after all complete lines. A file that cannot be opened yields
    unreadable_file.
    """
    try:
        file = regular(part.path).open("rb")
    except OSError as error:
        yield Reject("unreadable_file", f"{part.path}: {error}", broken=True)
        return
    with file:
        try:
            for line in _lines(file, part):
                if line is None:
                    detail = f"{part.path}: more than {MAX_LINE} bytes"
                    yield Reject("line_too_long", detail, broken=True)
                elif isinstance(line, Lost):
                    yield Reject(line.reason, f"{part.path}: {line.detail}", broken=True)
                elif line.strip():
                    yield parse(line, part.path)
        except OSError as error:
            yield Reject("truncated_file", f"{part.path}: {error}", broken=True)


def parse(line: bytes, where: str) -> dict[str, Any] | Reject:
    """Returns the object in a line.

    Args:
      line: in UTF-8.
      where: place of the line, for the Reject.

    Returns:
      The object; or a Reject for broken_text, not_json, not_an_object or too_many_values.
    """
    if len(line) > MAX_OBJECTS and (
        line.count(b",") > MAX_VALUES or line.count(b"{") + line.count(b"[") > MAX_OBJECTS
    ):
        detail = f"{where}: a line of {len(line)} bytes with too many values, as {line[:80]!r}"
        return Reject("too_many_values", detail, broken=True)
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Reject("broken_text", f"{where}: {error}", broken=True)
    except (ValueError, RecursionError) as error:
        return Reject("not_json", f"{where}: {error}, in {line[:80]!r}", broken=True)
    if not isinstance(row, dict):
        return Reject("not_an_object", f"{where}: {line[:80]!r}", broken=True)
    return row


def _packing(file: BinaryIO, path: str) -> str:
    """Returns "zip", "members" of gzip or zstd, or "" for a plain file; `file` is at its start."""
    head = file.read(4)
    file.seek(0)
    if head in (_ZIP, _EMPTY_ZIP) or (has_suffix(path, (".zip",)) and not head.startswith(b"{")):
        return "zip"
    is_named_so = has_suffix(path, _COMPRESSED) and not head.lstrip().startswith((b"{", b"\xef"))
    return "members" if is_packed(head) or is_named_so else ""


def _lines(file: BinaryIO, part: Lines) -> Iterator[bytes | Lost | None]:
    """Yields the lines that start in the part, without their ends. A line too long is None."""
    if packing := _packing(file, part.path):
        content = _unzipped(file) if packing == "zip" else unpacked(file)
        for _, line in _split(map(_without_blank_lines, content)):
            yield line
        return
    position = part.start
    # The line before belongs to the part before. It can end just before this part.
    if part.start:
        file.seek(part.start - 1)
        position -= 1
    for number, (length, line) in enumerate(_split(iter(lambda: file.read(PIECE), b""))):
        if part.stop >= 0 and position >= part.stop:
            return
        position += length
        if number or not part.start:
            yield line


def _without_blank_lines(chunk: bytes | Lost) -> bytes | Lost:
    """Returns a chunk without most of its blank lines: a small file can unpack to very many."""
    while isinstance(chunk, bytes) and b"\n\n\n\n" in chunk:
        chunk = chunk.replace(b"\n\n\n\n", b"\n")
    return chunk


def _split(chunks: Iterator[bytes | Lost]) -> Iterator[tuple[int, bytes | Lost | None]]:
    """Splits chunks into lines: (bytes including the end, line without its end; None if too long).

    Keeps at most MAX_LINE bytes in memory. The lines before and behind a gap are incomplete, so
    they are part of the loss, unless they are objects: streams are often cut between two lines.
    """
    pieces: list[bytes] = []
    length = 0
    is_behind_gap = False

    def line() -> bytes | None:
        return b"".join(pieces) if length <= MAX_LINE else None

    for chunk in chunks:
        if isinstance(chunk, Lost):
            if length and _is_object(line()):
                yield length, line()
            yield 0, chunk
            pieces.clear()
            length, is_behind_gap = 0, True
            continue
        for number, piece in enumerate(chunk.split(b"\n")):
            if number:
                if not is_behind_gap or _is_object(line()):
                    yield length + 1, line()
                is_behind_gap = False
                pieces.clear()
                length = 0
            length += len(piece)
            if length <= MAX_LINE:
                pieces.append(piece)
            else:
                pieces.clear()
    if length and (not is_behind_gap or _is_object(line())):
        yield length, line()


def _is_object(line: bytes | None) -> bool:
    return line is not None and not isinstance(parse(line, ""), Reject)


def _unzipped(file: BinaryIO) -> Iterator[bytes | Lost]:
    """Yields the content of all members of a .zip file. MMC4's shards have one member each.

    A damaged member yields a Lost, and the next one is read.
    """
    try:
        size = _directory_size(file)
        if size > _MAX_DIRECTORY:
            raise ValueError(f"its list of members has {size} bytes")
        archive = zipfile.ZipFile(file)
    except _BROKEN_ZIP as error:
        yield Lost("truncated_file", f"it cannot be unpacked: {error}")
        return
    with archive:
        for member in archive.infolist():
            if member.is_dir() or any(map(is_clutter, member.filename.split("/"))):
                continue
            try:
                if member.compress_type not in _ZIP_METHODS:
                    raise NotImplementedError(f"compression {member.compress_type}")
                with archive.open(member) as stream:
                    while chunk := stream.read(PIECE):
                        yield chunk
            except _BROKEN_ZIP as error:
                yield Lost("damaged_part", f"{member.filename!r:.100} cannot be unpacked: {error}")
            yield b"\n"


def _directory_size(file: BinaryIO) -> int:
    """Returns the bytes of a .zip's list of members, as its last record states; 0 if none does."""
    end = file.seek(0, 2)
    file.seek(max(end - (1 << 16) - 1000, 0))
    tail = file.read()
    large, small = tail.rfind(b"PK\x06\x06"), tail.rfind(b"PK\x05\x06")
    if large >= 0:
        return int.from_bytes(tail[large + 40 : large + 48], "little")
    return int.from_bytes(tail[small + 12 : small + 16], "little") if small >= 0 else 0
