"""Reads rows of JSON lines, plain or compressed, in bounded memory.

A damaged line yields a Reject, and reading continues. A plain file is read in parts, each by one
worker. A line belongs to the part in which it starts. A compressed file is one part.
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
MAX_LINE = 64 << 20  # bytes; a longer line is no document, and is skipped
PART = 128 << 20  # bytes of a plain file for one worker
_COMPRESSED = (".gz", ".zst", ".zip")
# Damage, a member that needs a password, or a compression that Python does not know.
_BROKEN_ZIP = (zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, struct.error)
_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 4096  # bytes. Small, since zstandard unpacks up to some 30,000 bytes from one.
_ZSTD_WINDOW = 1 << 31  # bytes; some public dumps were written by `zstd --long=31`


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
    if path.endswith(_COMPRESSED):
        return [Lines(path)]
    length = epath.Path(path).stat().length
    starts = list(range(0, max(length, 1), size))
    return [Lines(path, start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]


def rows(part: Lines) -> Iterator[dict[str, Any] | Reject]:
    """Yields the objects of the lines of a part; blank lines are skipped.

    A line that is not an object yields a Reject for broken_text (not UTF-8), not_json,
    not_an_object or line_too_long. A file that ends within its compression, or fails while it is
    read, yields truncated_file after all complete lines. A file that cannot be opened yields
    unreadable_file.
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
                    detail = f"{part.path}: more than {MAX_LINE} bytes"
                    yield Reject("line_too_long", detail, broken=True)
                elif line.strip():
                    yield parse(line, part.path)
        except (OSError, EOFError, zlib.error) as error:
            yield Reject("truncated_file", f"{part.path}: {error}", broken=True)


def parse(line: bytes, where: str) -> dict[str, Any] | Reject:
    """Returns the object in a line, or a Reject for broken_text, not_json or not_an_object.

    Args:
      line: in UTF-8.
      where: place of the line, for the Reject.
    """
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
    """Yields the lines that start in the part, without their ends. A line too long is None."""
    if part.path.endswith(_COMPRESSED):
        content = _unzipped(file) if part.path.endswith(".zip") else _decompressed(file, part.path)
        for _, line in _split(content):
            yield line
        return
    position = part.start
    # The line before belongs to the part before. It can end just before this part.
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
    """Splits chunks into lines: (bytes including the end, line without its end; None if too long).

    Keeps at most MAX_LINE bytes in memory.
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
    """Yields the content of a .gz or .zst file, which can contain several streams in sequence."""
    import zstandard

    def engine() -> Any:
        if path.endswith(".gz"):
            return zlib.decompressobj(wbits=31)
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    current = engine()
    while chunk := file.read(_COMPRESSED_CHUNK):
        while chunk:
            if current.eof:
                chunk = chunk.lstrip(b"\0")  # padding after the end, as on tapes
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
    """Yields the content of all members of a .zip file. MMC4's shards have one member each."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    while chunk := stream.read(_CHUNK):
                        yield chunk
                yield b"\n"
    except _BROKEN_ZIP as error:
        raise EOFError(f"it cannot be unpacked: {error}") from error
