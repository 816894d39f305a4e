"""Unpacks gzip and Zstandard piece by piece, and goes on behind damage.

    packed file  --members of gzip, frames of zstd-->  bytes | Lost | bytes | ...

The first bytes say how a file is packed, not its name. A file can consist of several members (RFC
1952, 2.2) or frames (RFC 8878, 3.1). If one of them is damaged, the next one is searched by its
magic number. What is before the damage is kept, in a small file as in a large one. The memory is
bounded, however much a file unpacks to.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

PIECE = 1 << 20  # bytes; the largest piece

GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # from the second byte of a frame of zstd without content
# Packed bytes at a time. Few for zstd, since it unpacks up to 32,768 bytes from each of them.
_GZIP_FEED, _ZSTD_FEED = 1 << 16, 1 << 11
# Packed bytes before the place where gzip finds damage. What they unpack to is not kept, since the
# damage can be in them.
_DOUBTFUL, _STEP = 1 << 12, 1 << 9
# Bytes; what `zstd --long=28` needs. A decompressor can take as much memory.
MAX_WINDOW = 1 << 28


@dataclasses.dataclass(frozen=True)
class Lost:
    """A gap between two pieces.

    Attributes:
      reason: "damaged_part", or "truncated_file" at the end.
      detail: what is wrong.
    """

    reason: str
    detail: str


class _Engine(Protocol):
    """Unpacks one member or frame."""

    eof: bool
    unused_data: bytes

    def feed(self, packed: bytes) -> Iterator[bytes]: ...


class _Damage(Exception):
    """A member or frame is damaged.

    Attributes:
      kept: bytes at the start of what was fed last, whose content was yielded.
    """

    def __init__(self, detail: str, kept: int = 0):
        super().__init__(detail)
        self.kept = kept


def is_packed(head: bytes) -> bool:
    """Returns True if a file that begins with these bytes is packed by gzip or zstd."""
    return head.startswith((GZIP[:2], ZSTD)) or head[1:4] == _SKIPPABLE


def unpacked(file: BinaryIO) -> Iterator[bytes | Lost]:
    """Yields the content of a packed file in pieces, and a Lost for each damaged part.

    Args:
      file: at its start. If it is not packed, it yields one Lost.

    Raises:
      OSError: the file cannot be read.
    """
    head = file.read(4)
    file.seek(0)
    is_zstd = head.startswith(ZSTD) or head[1:4] == _SKIPPABLE
    yield from _members(
        file, *((ZSTD, _Zstd, _ZSTD_FEED) if is_zstd else (GZIP, _Gzip, _GZIP_FEED))
    )


def _members(
    file: BinaryIO, magic: bytes, make: type[_Engine], feed: int
) -> Iterator[bytes | Lost]:
    packed = b""  # read, and not given to an engine yet
    engine: _Engine | None = None
    damage, skipped, found = "", 0, False
    while fresh := file.read(feed):
        packed += fresh
        while packed:
            is_new = engine is None
            if engine is None:
                start = packed.find(magic)
                gap = packed[: start if start >= 0 else max(len(packed) - len(magic) + 1, 0)]
                if gap.strip(b"\0"):  # zeros are padding, as on tapes
                    damage = damage or "bytes that are in no member"
                skipped += len(gap)
                packed = packed[len(gap) :]
                if start < 0:
                    break
                if damage and found:
                    yield Lost("damaged_part", f"{damage}; {skipped} packed bytes are passed over")
                damage, skipped, found = "", 0, True
            try:
                engine = engine or make(packed)  # type: ignore[call-arg]
                yield from engine.feed(packed)
            except _Damage as error:
                damage, engine = str(error), None
                is_at_magic = is_new and not error.kept  # so that it is not found again
                packed = packed[error.kept + is_at_magic :]
                skipped += is_at_magic
            else:
                packed, engine = (engine.unused_data, None) if engine.eof else (b"", engine)
    if engine is not None:
        yield Lost("truncated_file", "it ends within its compression")
    elif damage or packed.strip(b"\0") or not found:
        yield Lost("truncated_file", damage or "its end is in no member")


class _Gzip:
    def __init__(self, packed: bytes):
        self._engine = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data

    def feed(self, packed: bytes) -> Iterator[bytes]:
        piece, fed = b"", len(packed)
        while packed or len(piece) == PIECE:
            before = self._engine.copy()
            try:
                piece = self._engine.decompress(packed, PIECE)
            except zlib.error as error:
                sound, used = before_damage(before, packed)
                if sound:
                    yield sound
                kept = fed - len(packed) + used
                raise _Damage(f"a damaged member of gzip: {error}", kept) from error
            if piece:
                yield piece
            packed = self._engine.unconsumed_tail


def before_damage(engine: Any, packed: bytes) -> tuple[bytes, int]:
    """Returns what is sound before damage.

    Args:
      engine: a decompressor of zlib, as it was before it was fed `packed` and failed.
      packed: packed bytes.

    Returns:
      The content of `packed` up to some way before the damage, and the number of its packed bytes.
    """
    pieces = []
    for start in range(0, len(packed), _STEP):
        try:
            pieces.append(engine.decompress(packed[start : start + _STEP]))
        except zlib.error:
            break
    num_kept = max(len(pieces) - _DOUBTFUL // _STEP, 0)
    return b"".join(pieces[:num_kept]), num_kept * _STEP


class _Zstd:
    def __init__(self, packed: bytes):
        import zstandard

        self._error = zstandard.ZstdError
        try:
            window = zstandard.get_frame_parameters(packed).window_size
        except zstandard.ZstdError:  # too few bytes, or damaged, as the engine will see
            window = 0
        if window > MAX_WINDOW:
            raise _Damage(
                f"a frame of zstd needs {window >> 20} MiB of memory, more than "
                f"{MAX_WINDOW >> 20}; pack it again with zstd --long=28 or less"
            )
        self._engine: Any = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._engine.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._engine.unused_data)

    def feed(self, packed: bytes) -> Iterator[bytes]:
        try:
            content = self._engine.decompress(packed)
        except self._error as error:
            raise _Damage(f"a damaged frame of zstd: {error}") from error
        for start in range(0, len(content), PIECE):
            yield content[start : start + PIECE] if len(content) > PIECE else content
