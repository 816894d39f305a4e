"""The manifest of a checkpoint: size and hash of each file, so that damage is found before use.

    DIR/manifest.json    {"files": {"weights/d/9f3c": {"bytes": 1048576, "sha256": "4b1d..."}}}

Steps and exports have one. It is written when all other files are on the disk, and before the
checkpoint appears under its name. A file that is not in it is not checked.

To hash takes about 1 s for 1 GB on two cores. A save returns as early as without it, and ends later
in the background: 1 GB after 11 s in place of 7 s, where the disk takes most of it. A restore of
1 GB takes 5.5 s in place of 3.5 s. Memory is needed for a few blocks only.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import agreement, paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.files import not_files

T = TypeVar("T")

NAME = "manifest.json"
_THREADS = 8  # each holds one block of a file

# orbax changes these files of a step until the moment that it appears, and nobody needs them.
_LEFT_OUT = ("_CHECKPOINT_METADATA", "commit_success.txt", NAME)

# A file that this process found right is not read again for an hour, if it is not written again. It
# may be written again without a trace within the resolution of the clock, so it must be older.
_KNOWN_SECONDS = 3600
_CLOCK_SECONDS = 2
_known: dict[str, tuple[Any, float]] = {}

_UNREADABLE = "cannot be read: "


class DamageError(CheckpointError):
    """A file of a checkpoint is missing, cut off or changed: "FILE: what is wrong"."""


@dataclasses.dataclass(frozen=True)
class FileHash:
    """What a manifest says of a file: its size and the hash of its content."""

    bytes: int
    sha256: str


class Contents(NamedTuple):
    """How much was checked: number of files, and their bytes."""

    files: int
    bytes: int


def entry_of(content: bytes) -> FileHash:
    """Returns the entry of a file with this content."""
    return FileHash(len(content), hashlib.sha256(content).hexdigest())


def entries(directory: Path, names: Iterable[str]) -> dict[str, FileHash]:
    """Reads files, writes them from the cache to the disk, and returns their entries.

    Args:
        directory: the checkpoint.
        names: paths of the files, relative to it.
    """

    def entry(name: str) -> FileHash:
        paths.flush(directory / name)
        return _entry(directory / name)

    names = sorted(names)
    return dict(zip(names, _in_threads(entry, names), strict=True))


def files(directory: Path) -> Iterator[str]:
    """Yields the files of a checkpoint that belong into its manifest, relative to `directory`."""
    for found, is_directory in paths.listed(directory):
        if is_directory:
            yield from (f"{found.name}/{name}" for name in _walk(found))
        elif found.name not in _LEFT_OUT:
            yield found.name


def write(directory: Path, found: Mapping[str, FileHash]) -> None:
    """Writes the manifest; it and the directories of its files are on the disk afterwards.

    Raises:
        PathError: if it cannot be written.
    """
    for parent in sorted({str((directory / name).parent) for name in found}):
        paths.flush(parent)
    content = {name: dataclasses.asdict(found[name]) for name in sorted(found)}
    paths.write_json(directory / NAME, {"files": content})


def read_object(file: Path) -> dict[str, Any]:
    """Returns the content of a JSON file of a checkpoint, all of which hold an object.

    Raises:
        PathError: if there is no such file, or it holds anything else.
    """
    value = paths.read_json(file)
    if not isinstance(value, dict):
        raise paths.PathError(f"{file} is damaged: got {str(value)[:20]!r}, expected a JSON object")
    return value


def is_small(name: str) -> bool:
    """Returns False for the files that hold the values of arrays."""
    return "/d/" not in name


def check(
    directory: PathLike,
    *,
    required: bool,
    only: Callable[[str], bool] = lambda name: True,
    alone: bool = False,
) -> Contents | None:
    """Compares the files of a checkpoint with its manifest.

    All processes of a run call it together: each reads a part of the files, and all return the same
    or raise the same.

    Args:
        directory: the checkpoint.
        required: whether there must be a manifest.
        only: only(name) says whether a file is checked.
        alone: True if the other processes do not call it.

    Returns:
        How much was checked; None if there is no manifest, as in checkpoints of old versions.

    Raises:
        DamageError: if a file is missing, cut off or changed, or there is no manifest.
        CheckpointError: if a file cannot be read for another reason, such as a permission.
    """
    place, verdict, listed = Path(directory), "", None
    index, count = (0, 1) if alone else (jax.process_index(), jax.process_count())
    try:
        if index and not place.exists():
            raise FileNotFoundError(f"process {index} does not see {place}")
        listed = _read(place, required=required)
        names = sorted(name for name in listed or {} if only(name))
        verdict = _first_problem(place, listed or {}, names[index::count])
        if not verdict and not index:
            verdict = next((f"{name}: not a file" for name in _pipes(place) if only(name)), "")
    except DamageError as error:
        verdict = str(error)
    except OSError as error:
        verdict = f"{_UNREADABLE}{error}"
    if count > 1:
        first = lambda verdicts: next((each for each in verdicts if each), "")
        verdict = agreement.verdict(verdict, first)
    if verdict:
        raise (CheckpointError if verdict.startswith(_UNREADABLE) else DamageError)(verdict)
    if listed is None:
        return None
    return Contents(len(names), sum(listed[name].bytes for name in names))


def _walk(directory: Path) -> Iterator[str]:
    for found, is_directory in paths.listed(directory):
        if is_directory:
            yield from (f"{found.name}/{name}" for name in _walk(found))
        else:
            yield found.name


def _pipes(directory: Path, above: str = "") -> Iterator[str]:
    """Yields the pipes and devices of a checkpoint: orbax would open them, and wait for ever."""
    if not directory.is_dir():
        return
    yield from (above + each.name for each in not_files(directory) if each.name not in _LEFT_OUT)
    for found, is_directory in paths.listed(directory):
        if is_directory:
            yield from _pipes(found, f"{above}{found.name}/")


def _read(directory: Path, *, required: bool) -> dict[str, FileHash] | None:
    if not (directory / NAME).exists():
        if required:
            raise DamageError(f"{NAME}: missing")
        return None
    try:
        content = read_object(directory / NAME)["files"]
        found = {name: FileHash(**entry) for name, entry in content.items()}
        if not all(type(each.bytes) is int and type(each.sha256) is str for each in found.values()):
            raise ValueError("an entry has no size or no hash")
        if not found:
            raise ValueError("it lists no file")
    except (paths.PathError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = "not a JSON object" if isinstance(error, paths.PathError) else str(error)
        if isinstance(error, paths.NotAFileError):
            raise DamageError(f"{NAME}: not a file") from error
        raise DamageError(f"{NAME}: changed or cut off: {reason}") from error
    return found


def _first_problem(directory: Path, listed: Mapping[str, FileHash], names: list[str]) -> str:
    """Returns what is wrong with the first of some files that is damaged; "" if none is."""

    def problem(name: str) -> str:
        expected, now = listed[name], time.time()
        try:
            stamp = (expected, *paths.stamp(directory / name))
            if _is_known(directory / name, stamp):
                return ""
            got = _entry(directory / name)
        except FileNotFoundError:
            return f"{name}: missing"
        except (paths.NotAFileError, NotADirectoryError):
            return f"{name}: not a file"
        except OSError as error:
            if error.errno == errno.EIO:
                return f"{name}: the disk cannot read it"
            raise
        if got.bytes != expected.bytes:
            how = "cut off" if got.bytes < expected.bytes else "too long"
            return f"{name}: {how}: got {got.bytes:,} bytes, expected {expected.bytes:,}"
        if got != expected:
            return f"{name}: changed: got hash {got.sha256[:12]}, expected {expected.sha256[:12]}"
        _known[str(directory / name)] = stamp, now
        return ""

    return next((found for found in _in_threads(problem, names) if found), "")


def _is_known(file: Path, stamp: tuple[Any, ...]) -> bool:
    known, when = _known.get(str(file), (None, 0.0))
    written = stamp[1] / 1e9
    return (
        known == stamp and when - written > _CLOCK_SECONDS and time.time() - when < _KNOWN_SECONDS
    )


def _entry(file: Path) -> FileHash:
    digest, size = hashlib.sha256(), 0
    for block in paths.blocks(file):
        digest.update(block)  # other threads run meanwhile
        size += len(block)
    return FileHash(size, digest.hexdigest())


def _in_threads(function: Callable[[str], T], names: list[str]) -> list[T]:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, names))
