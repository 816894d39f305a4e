"""Reads HTTP responses as archives store them: status, headers, and the body without its encodings.

    b"HTTP/1.1 200 OK" ...  --split-->  Head, block  --unpacked-->  body

Many crawlers store a body that is decoded already, and leave the headers as they were. So a coding
is undone only if the body has it. An unknown one ("utf-8", "none") is no coding, as in browsers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(
    rb"\s{0,8}(?:HTTP|ICY|H[23])(?:/[\d.]{1,5})?\s{1,8}(\d{3})(?!\d)", re.IGNORECASE
)
_LINE = re.compile(r"\r?\n(?![ \t])")
_CHUNK_SIZE = re.compile(rb"[ \t]{0,8}([0-9a-fA-F]{1,8})[ \t]{0,8}(?:;[^\r\n]{0,200})?\r?\n")
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_STEP = 512  # packed bytes at a time: unpacked, they are at most a few MB

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names of formats: the size of the window
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LARGEST_WINDOW = 1 << 27  # bytes


class Head:
    """Headers by name, in any case.

    Args:
      lines: the text before the blank line, without the first line.
    """

    def __init__(self, lines: str):
        self._values: dict[str, list[str]] = {}
        for line in _LINE.split(lines):
            name, _, value = line.partition(":")
            self._values.setdefault(name.strip().lower(), []).append(" ".join(value.split()))

    def first(self, name: str) -> str:
        """Returns the first header of a name, or ""."""
        return self._values.get(name, [""])[0]

    def all(self, name: str) -> list[str]:
        """Returns the parts of all headers of a name, which commas separate, in lower case."""
        joined = ",".join(self._values.get(name, ()))
        return [part for each in joined.split(",") if (part := each.strip().lower())]


class Message(NamedTuple):
    """A response.

    Attributes:
      status: three digits.
      head: its headers.
      block: what comes after the headers, in its encodings.
    """

    status: int
    head: Head
    block: bytes


def split(data: bytes) -> tuple[str, bytes]:
    """Returns the text before the first blank line, and the bytes after it."""
    end = _HEAD_END.search(data)
    head, block = (data[: end.start()], data[end.end() :]) if end else (data, b"")
    try:
        return head.decode(), block
    except UnicodeDecodeError:
        return head.decode("latin-1"), block


def response(data: bytes) -> Message | None:
    """Returns the parts of a response, or None for what is none."""
    status = _STATUS.match(data)
    if not status:
        return None
    head, block = split(data.lstrip())
    return Message(int(status.group(1)), Head(head.partition("\n")[2]), block)


def unpacked(message: Message, max_bytes: int) -> tuple[bytes, bool]:
    """Returns the body of a response without its encodings, and whether it ends early.

    Args:
      message: the response.
      max_bytes: largest result. Of a longer one max_bytes bytes are returned.

    Raises:
      ValueError: it is damaged.
    """
    body, is_cut = message.block, False
    for coding in reversed(message.head.all("transfer-encoding")):
        body, cut_here = _chunks(body) if coding == "chunked" else _decoded(body, coding, max_bytes)
        is_cut |= cut_here
    for coding in reversed(message.head.all("content-encoding")):
        body, cut_here = _decoded(body, coding, max_bytes)
        is_cut |= cut_here
    return body[:max_bytes], is_cut


def _chunks(body: bytes) -> tuple[bytes, bool]:
    """Joins the chunks of a body. A body without chunks has been joined by the crawler."""
    parts: list[bytes] = []
    position = 0
    while size := _CHUNK_SIZE.match(body, position):
        start, length = size.end(), int(size.group(1), 16)
        if not length:
            return b"".join(parts), False
        end = start + length
        if not parts and body[end : end + 1] not in (b"", b"\r", b"\n"):
            break  # a text that begins like a chunk
        parts.append(body[start:end])
        position = end + (2 if body.startswith(b"\r\n", end) else 1)
        if end == len(body) or position == len(body):
            return b"".join(parts), False  # only the mark of the end is missing
    return (b"".join(parts), True) if parts else (body, False)


def _decoded(body: bytes, coding: str, max_bytes: int) -> tuple[bytes, bool]:
    """Undoes one coding, if the body has it."""
    if coding in ("gzip", "x-gzip", "deflate") and body.startswith(_GZIP_MAGIC):
        return _members(body, lambda: zlib.decompressobj(_GZIP), _GZIP_MAGIC, max_bytes)
    if coding == "deflate" and body:
        is_zlib = len(body) > 1 and body[0] & 15 == 8 and not (body[0] << 8 | body[1]) % 31
        try:
            unpacker = zlib.decompressobj(_ZLIB if is_zlib else _RAW)
            part, is_cut, _ = _member(body, unpacker, max_bytes)
        except ValueError:
            return _if_text(body)
        return (body, False) if is_cut and not part and _is_text(body) else (part, is_cut)
    if coding in ("zstd", "x-zstd") and body.startswith(_ZSTD_MAGIC):
        import zstandard

        frames = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        return _members(body, frames.decompressobj, _ZSTD_MAGIC, max_bytes)
    return _of_brotli(body, max_bytes) if coding == "br" and body else (body, False)


def _members(
    body: bytes, unpacker: Callable[[], Any], magic: bytes, max_bytes: int
) -> tuple[bytes, bool]:
    """Unpacks members of one format, one after the other, up to bytes that are no member."""
    parts: list[bytes] = []
    left, is_cut = max_bytes, False
    while body.startswith(magic) and left > 0:
        part, is_cut, body = _member(body, unpacker(), left)
        parts.append(part)
        left -= len(part)
    return b"".join(parts), is_cut


def _member(body: bytes, unpacker: Any, max_bytes: int) -> tuple[bytes, bool, bytes]:
    """Returns the unpacked bytes of one member, whether it is cut, and the bytes after it."""
    parts: list[bytes] = []
    left, position = max_bytes, 0
    while not unpacker.eof:
        packed = body[position : position + _STEP]
        if not packed:
            return b"".join(parts), True, b""
        try:
            part = unpacker.decompress(packed)
        except Exception as error:  # zlib.error, zstandard.ZstdError
            raise ValueError(f"it cannot be unpacked: {error}") from error
        position += _STEP
        parts.append(part)
        left -= len(part)
        if left <= 0:
            return b"".join(parts)[:max_bytes], False, b""
    return b"".join(parts), False, unpacker.unused_data + body[position:]


def _of_brotli(body: bytes, max_bytes: int) -> tuple[bytes, bool]:
    import pyarrow

    parts: list[bytes] = []
    left = max_bytes
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "brotli") as stream:
            while left > 0 and (part := stream.read(min(left, 1 << 12))):
                parts.append(part)
                left -= len(part)
    except OSError as error:
        if "Truncated" in str(error) and not _is_text(body):
            return b"".join(parts), True
        return _if_text(body)
    return b"".join(parts), False


def _if_text(body: bytes) -> tuple[bytes, bool]:
    """Returns a body that is stored without the coding that its headers state."""
    if not _is_text(body):
        raise ValueError("it cannot be unpacked")
    return body, False


def _is_text(body: bytes) -> bool:
    return not _CONTROLS.search(body[:1024])
