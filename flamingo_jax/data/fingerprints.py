"""Fingerprints of what a run reads: its datasets and its tokenizer.

A checkpoint stores them. When the run goes on, other records under the same path are noticed, and
the same records under another path are accepted.

    dataset      {count: records, bytes, features: hash, files: {shard: {records, bytes, hash}}}
    tokenizer    {file: hash}

A dataset of at most WHOLE_BYTES is hashed whole. Of each shard of a larger one the first, middle
and last BLOCK bytes are hashed. An ArrayRecord file ends in an index of its compressed chunks, so
other records change its end, and nearly always its size. A few bytes that are changed in the middle
of a large shard are not noticed here: the checksum of their chunk makes the records corrupt.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathError, PathLike
from flamingo_jax.tokenizers import base as tokenizer_lib

WHOLE_BYTES = 256 << 20
BLOCK = 64 << 10

_THREADS = 32  # most of the time is the wait for a network
_MOST_LINES = 256  # of a dataset in a checkpoint; longer lists of shards are put together


@dataclasses.dataclass(frozen=True)
class Piece:
    """The part of a split that one file holds.

    Attributes:
        name: of the file.
        first: the first of its records that the split has.
        count: number of the records that the split has.
    """

    name: str
    first: int
    count: int


def of_dataset(directory: PathLike, shards: Sequence[Piece]) -> dict[str, Any]:
    """Returns the fingerprint of a split.

    Args:
        directory: dataset_info.json, features.json and the shards.
        shards: the split, in order.

    Raises:
        PathError: a file cannot be read.
    """
    place = Path(directory)
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = list(threads.map(lambda shard: _size(place / shard.name), shards))
        whole = sum(sizes) <= WHOLE_BYTES
        hashes = threads.map(
            lambda shard, size: _hash(place / shard.name, size, whole=whole), shards, sizes
        )
        found = list(zip(shards, sizes, hashes, strict=True))
    return {
        "count": sum(shard.count for shard in shards),
        "bytes": sum(sizes),
        "features": _hash_if_there(place / "features.json"),
        "files": _lines(found),
    }


def of_tokenizer(path: PathLike) -> dict[str, str]:
    """Returns {file: hash} of all files that decide how texts become tokens.

    Raises:
        FileNotFoundError: there is no tokenizer at `path`.
    """
    return {name: _short(content) for name, content in tokenizer_lib.files(path).items()}


def _lines(found: list[tuple[Piece, int, str]]) -> dict[str, dict[str, Any]]:
    """Returns a line for each shard, or for each group of neighbours where there are too many."""
    size = -(-len(found) // _MOST_LINES) or 1
    groups = [found[i : i + size] for i in range(0, len(found), size)]
    lines = {}
    for group in groups:
        first, last = group[0][0], group[-1][0]
        name = first.name if len(group) == 1 else f"{first.name} to {last.name}"
        if name in lines:  # a second slice of the same file
            name = f"{name} from record {first.first}"
        parts = [f"{s.name} {s.first} {s.count} {num_bytes} {h}" for s, num_bytes, h in group]
        lines[name] = {
            "records": sum(shard.count for shard, _, _ in group),
            "bytes": sum(num_bytes for _, num_bytes, _ in group),
            "hash": _short("\n".join(parts).encode()),
        }
    return lines


def _size(file: Path) -> int:
    try:
        return int(file.stat().length)
    except OSError as error:
        raise _unreadable(file, error) from error


def _hash(file: Path, size: int, *, whole: bool) -> str:
    digest = hashlib.sha256()
    try:
        if whole:
            for block in paths.blocks(file):
                digest.update(block)
            return digest.hexdigest()
        with paths.regular(file).open("rb") as content:
            for start in (0, max(0, size // 2 - BLOCK // 2), max(0, size - BLOCK)):
                content.seek(start)
                digest.update(content.read(BLOCK))
    except OSError as error:
        raise _unreadable(file, error) from error
    return digest.hexdigest()


def _hash_if_there(file: Path) -> str:
    try:
        return _short(paths.regular(file).read_bytes()) if file.exists() else ""
    except OSError as error:
        raise _unreadable(file, error) from error


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _unreadable(file: Path, error: OSError) -> PathError:
    return PathError(
        f"Cannot read {file}: {error.strerror or error}. Check its permissions and the disk."
    )
