"""Reads tar files of samples, as img2dataset writes them.

The members 00001.jpg, 00001.txt, 00001.json are one sample.

    shard.tar[.gz]  --stream of 512-byte blocks-->  members
      --adjacent members with the same key-->  TarSample | Reject

Nothing is extracted. Members are read in order, with one sample in memory at a time. Everything but
a plain file below the archive's root is left out.
"""

from __future__ import annotations

import dataclasses
import gzip
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

from etils import epath

from data_pipelines.page import Reject

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_SAMPLE = 1 << 28  # bytes of all members of a sample; a larger sample is left out

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 20  # bytes of a long name or of extended attributes
_FILE, _DIRECTORY = (b"0", b"\0", b"7"), b"5"
_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _ATTRIBUTES_OF_ALL = b"L", b"K", (b"x", b"X"), b"g"


@dataclasses.dataclass(frozen=True)
class TarSample:
    """The members that share a key.

    Attributes:
      key: path of the members up to the first dot of the file name.
      files: content by the text after that dot in lower case, for example "jpg".
    """

    key: str
    files: dict[str, bytes]

    def first(self, *suffixes: str) -> bytes | None:
        """Returns the content of the first of these suffixes that the sample has, or None."""
        return next((self.files[suffix] for suffix in suffixes if suffix in self.files), None)


def samples(path: str) -> Iterator[TarSample | Reject]:
    """Reads the samples of a tar file, which can be compressed by gzip.

    Args:
      path: of the file.

    Yields:
      In order: samples, and a Reject for each unusable sample: path_traversal (a member outside of
      the archive's root, a link or a device), sample_too_large, duplicate_member. At the end of a
      damaged file truncated_file, or unreadable_file if even its beginning is no tar.
    """
    sample, reason = TarSample("", {}), None
    try:
        with epath.Path(path).open("rb") as raw:
            for member in _members(_uncompressed(raw)):
                if member.key != sample.key:
                    yield from _whole(sample, reason)
                    sample, reason = TarSample(member.key, {}), None
                reason = reason or _refusal(member, sample)
                if reason is None:
                    sample.files[member.suffix] = member.read()
        yield from _whole(sample, reason)
    except _Damage as damage:  # members of the last sample can be missing, so it is left out
        yield Reject(damage.reason, f"{path}: {damage}", broken=True)
    except (OSError, EOFError, zlib.error) as error:
        reason = "truncated_file" if sample.key else "unreadable_file"
        yield Reject(reason, f"{path}: {error}", broken=True)


def _whole(sample: TarSample, reason: str | None) -> Iterator[TarSample | Reject]:
    if reason is not None:
        yield Reject(reason, sample.key, broken=True)
    elif sample.files:
        yield sample


def _refusal(member: _Member, sample: TarSample) -> str | None:
    """Returns why a member cannot be part of a sample, or None."""
    if not member.is_file or member.name.startswith("/") or ".." in member.name.split("/"):
        return "path_traversal"
    if member.size + sum(map(len, sample.files.values())) > MAX_SAMPLE:
        return "sample_too_large"
    return "duplicate_member" if member.suffix in sample.files else None


class _Damage(Exception):
    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass
class _Member:
    """One member. Its content must be read or skipped before the next one is read."""

    name: str
    is_file: bool
    size: int
    stream: IO[bytes]

    def __post_init__(self) -> None:
        self._left = self.size + -self.size % _BLOCK
        directory, slash, file = self.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        self.key, self.suffix = directory + slash + stem, suffix.lower()

    def read(self) -> bytes:
        return b"".join(self._chunks())[: self.size]

    def skip(self) -> None:
        for _ in self._chunks():
            pass

    def _chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self.stream.read(min(self._left, _CHUNK))
            if not chunk:
                raise _Damage("truncated_file", f"ends within {self.name!r}")
            self._left -= len(chunk)
            yield chunk


def _uncompressed(raw: IO[bytes]) -> IO[bytes]:
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if is_gzip else raw  # type: ignore[return-value]


def _members(stream: IO[bytes]) -> Iterator[_Member]:
    """Yields the members except directories.

    The standard library parses the headers. The loop over them is written here, because the
    library's loop keeps a list of all members, reads long names of any length into memory, and lets
    sparse files grow.
    """
    long_name, attributes, first = "", {}, True
    while True:
        header = stream.read(_BLOCK)
        if not header and not first:
            return  # only the two empty blocks at the end are missing
        if header == bytes(_BLOCK):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            reason = "unreadable_file" if first else "truncated_file"
            raise _Damage(reason, f"no header of a member where one is due: {error}") from error
        first = False
        if info.size < 0:
            raise _Damage("truncated_file", f"{info.name!r} has {info.size} bytes")
        member = _Member(long_name or info.name, info.type in _FILE, info.size, stream)
        if info.type in (_LONG_NAME, _LONG_LINK, _ATTRIBUTES_OF_ALL, *_ATTRIBUTES):
            if info.size > _MAX_HEADER:
                raise _Damage("truncated_file", f"a name or attributes of {info.size} bytes")
            content = member.read()
            if info.type == _LONG_NAME:
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in _ATTRIBUTES:
                attributes = _attributes(content)
            continue
        if attributes:
            sparse = any(name.startswith("GNU.sparse") for name in attributes)
            size = attributes.get("size", "")
            member = _Member(
                attributes.get("path", member.name),
                member.is_file and not sparse,
                int(size) if size.isascii() and size.isdecimal() else member.size,
                stream,
            )
        long_name, attributes = "", {}
        if info.type != _DIRECTORY:
            yield member
        member.skip()


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
