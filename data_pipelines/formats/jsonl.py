"""Rows of JSON lines, plain or compressed, in bounded memory.

A damaged line is a Reject, and the file goes on.

A plain file is read in parts, each by a worker of its own; a line belongs to the part in which it
starts. A compressed file is one part.
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

from data_pipelines.page import Reject

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zip", ".json.gz", ".json.zst", ".ndjson")
MAX_LINE = 64 << 20  # bytes; a longer line is no document, and is passed over
PART = 128 << 20  # bytes of a plain file for one worker
_COMPRESSED = (".gz", ".zst", ".zip")
_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 4096  # little, as zstandard makes up to some 30,000 bytes of one
_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` writes, as some public dumps are


@dataclasses.dataclass(frozen=True)
class Lines:
    """A part of a file.

    Attributes:
      path: the file.
      start: of the part, in bytes.
      stop: where the next part starts; -1: the end of the file.
    """

    path: str
    start: int = 0
    stop: int = -1


def parts(path: str, size: int = PART) -> list[Lines]:
    """Returns the parts of a file in order.

    Of about `size` bytes for a plain one, the whole for a compressed one.
    """
    if path.endswith(_COMPRESSED):
        return [Lines(path)]
    length = epath.Path(path).stat().length
    starts = list(range(0, max(length, 1), size))
    return [Lines(path, start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]


def rows(part: Lines) -> Iterator[dict[str, Any] | Reject]:
    """Yields the objects of the lines of a part; blank lines are skipped.

    A line that is not one gives a Reject for broken_text (not UTF-8), not_json, not_an_object or
    line_too_long; a file that ends within its compression, or cannot be read on, gives
    truncated_file after all that is whole; one that cannot be opened unreadable_file.
    """
    try:
        file = epath.Path(part.path).open("rb")
    except OSError as error:
        yield Reject("unreadable_file", f"{part.path}: {error}", broken=True)
        return
    with file:
        try:
            for line in _lines(file, part):
                if line is None:
                    yield Reject(
                        "line_too_long", f"{part.path}: more than {MAX_LINE} bytes", broken=True
                    )
                elif line.strip():
                    yield parse(line, part.path)
        except (OSError, EOFError, zlib.error) as error:
            yield Reject("truncated_file", f"{part.path}: {error}", broken=True)


def parse(line: bytes, where: str) -> dict[str, Any] | Reject:
    """Returns the object that a line holds, or a Reject for broken_text, not_json or not_an_object, which names `where` it stands."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Reject("broken_text", f"{where}: {error}", broken=True)
    except (ValueError, RecursionError) as error:
        return Reject("not_json", f"{where}: {error}, in {line[:80]!r}", broken=True)
    if not isinstance(row, dict):
        return Reject("not_an_object", f"{where}: {line[:80]!r}", broken=True)
    return row


def _lines(file: BinaryIO, part: Lines) -> Iterator[bytes | None]:
    """The lines that start in the part, without their ends; None for one that is too long."""
    if part.path.endswith(_COMPRESSED):
        content = _unzipped(file) if part.path.endswith(".zip") else _decompressed(file, part.path)
        for _, line in _split(content):
            yield line
        return
    position = part.start
    # the line before belongs to the part before; it may end just where this part starts
    if part.start:
        file.seek(part.start - 1)
        position -= 1
    for number, (length, line) in enumerate(_split(iter(lambda: file.read(_CHUNK), b""))):
        if part.stop >= 0 and position >= part.stop:
            return
        position += length
        if number or not part.start:
            yield line


def _split(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Splits into lines: (its bytes with the end, the line without, or None if it is too long).

    Holds MAX_LINE bytes at most.
    """
    pieces: list[bytes] = []
    length = 0

    def line() -> bytes | None:
        return b"".join(pieces) if length <= MAX_LINE else None

    for chunk in chunks:
        for number, piece in enumerate(chunk.split(b"\n")):
            if number:
                yield length + 1, line()
                pieces.clear()
                length = 0
            length += len(piece)
            if length <= MAX_LINE:
                pieces.append(piece)
            else:
                pieces.clear()
    if length:
        yield length, line()


def _decompressed(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The content of a .gz or .zst file, which may hold several streams one after the other."""
    import zstandard

    def engine() -> Any:
        if path.endswith(".gz"):
            return zlib.decompressobj(wbits=31)
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    current = engine()
    while chunk := file.read(_COMPRESSED_CHUNK):
        while chunk:
            if current.eof:
                chunk = chunk.lstrip(b"\0")  # padding after the end, as tapes leave
                if not chunk:
                    break
                current = engine()
            try:
                yield current.decompress(chunk)
            except zstandard.ZstdError as error:
                raise EOFError(f"its compression is damaged: {error}") from error
            chunk = current.unused_data if current.eof else b""
    if not current.eof:
        raise EOFError("it ends within its compression")


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    """The content of all members of a .zip file, such as MMC4's shards, which hold one each."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    yield from iter(lambda stream=stream: stream.read(_CHUNK), b"")  # type: ignore[misc]
                yield b"\n"
    # Damaged; a member that needs a password; a way of compression that Python does not know.
    except (
        zipfile.BadZipFile,
        RuntimeError,
        NotImplementedError,
        ValueError,
        struct.error,
    ) as error:
        raise EOFError(f"it cannot be unpacked: {error}") from error
