"""The files that --input and other options name.

    --input=crawl                  a directory: all files below it with the right suffixes
    --input=a.jsonl,b.jsonl        several, separated by commas
    --input=crawl/*/index.html     a pattern with * ? [ ], or ** for any directories between

A path that exists is taken literally, also if its name contains a comma or a bracket. Suffixes are
compared without case. Files that an option finds but that no reader takes are counted.
"""

from __future__ import annotations

import collections
import fnmatch
import functools
import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from data_pipelines.formats.local_files import forms
from flamingo_jax.data.files import (
    DATASHEET,
    files_below,
    has_suffix,
    is_clutter,
    is_local,
    listed,
    suffix_of,
)

_WILD = frozenset("*?[")
_MOST_COMMAS = 16  # in the name of one file


class InputFiles(list[str]):
    """Paths, sorted.

    Attributes:
      passed_over: number of files that were found and are no input, by suffix.
    """

    def __init__(self, paths: Iterable[str], passed_over: dict[str, int]):
        super().__init__(paths)
        self.passed_over = passed_over


def input_files(
    pattern: str, suffixes: Sequence[str], companions: Sequence[str] = ()
) -> InputFiles:
    """Returns the files that --input names.

    Args:
      pattern: files, directories and patterns, separated by commas. Of a directory the files below
        it are taken that end in one of `suffixes`. Of a pattern, too; or all of its files if none
        has such a suffix.
      suffixes: endings of file names in lower case, such as (".warc.gz", ".warc").
      companions: endings of files that are found through the input, such as the images of a page.
        They are not counted as passed over.

    Raises:
      ValueError: there is no such file.
    """
    found: dict[str, str] = {}  # absolute path -> path
    passed_over: dict[str, str] = {}
    for one, places in named(pattern):
        chosen: list[epath.Path] = []
        others: list[epath.Path] = []
        for place in places:
            if place.is_dir():
                try:
                    for file in files_below(place, with_clutter=True):
                        is_input = has_suffix(file.name, suffixes) and not _is_clutter(file, place)
                        (chosen if is_input else others).append(file)
                except OSError as error:
                    raise ValueError(
                        f"--input={one}: {place} cannot be listed: {error}. Check its permissions."
                    ) from error
            elif not _is_pattern(one) or has_suffix(place.name, suffixes):
                chosen.append(place)
            else:
                others.append(place)
        if not chosen and not any(place.is_dir() for place in places):
            chosen, others = others, []
        if not chosen:
            raise ValueError(
                f"--input={one}: there is no such file, and no file ending in "
                f"{' or '.join(suffixes)} below it{_instead(others)}. Check the path."
            )
        found |= {_key(file): os.fspath(file) for file in chosen}
        passed_over |= {_key(file): suffix_of(file.name) for file in others}
    if not found:
        raise ValueError(
            "--input is missing: give a file, a directory, or a pattern of files ending in "
            f"{suffixes[0]}."
        )
    counts = collections.Counter(
        suffix
        for path, suffix in passed_over.items()
        if path not in found and not has_suffix(suffix, companions)
    )
    return InputFiles(sorted(found.values()), dict(counts.most_common()))


class PageFolders(NamedTuple):
    """Where a file of the input is.

    Attributes:
      root: the directory of --input that contains it: as named; for a file its own directory; for
        a file of a pattern the directory before the first * ? [ of the pattern.
      base: the directory above all directories of --input.
      name: path of the file from `base`. No other file of the input has it.
    """

    root: epath.Path
    base: epath.Path
    name: str


def page_folders(pattern: str, path: str) -> PageFolders:
    """Returns where a file is that `input_files` found."""
    file = epath.Path(_key(epath.Path(path)))
    root = next((place for place in _roots(pattern) if file.is_relative_to(place)), file.parent)
    base = _above(_roots(pattern), root)
    return PageFolders(root, base, os.fspath(file.relative_to(base)))


@functools.lru_cache(8)
def _roots(pattern: str) -> tuple[epath.Path, ...]:
    """Returns the directories of an input, those that contain others first."""
    found = set()
    for one, places in named(pattern):
        for place in places:
            if not place.is_dir():
                place = _fixed(epath.Path(one)) if _is_pattern(one) else place.parent
            found.add(_key(place))
    return tuple(map(epath.Path, sorted(found, key=len)))


def _above(places: Iterable[epath.Path], first: epath.Path) -> epath.Path:
    """Returns the closest directory above `first` that contains all places, or `first`."""
    inside = first
    while not all(place.is_relative_to(inside) for place in places):
        if inside.parent == inside:  # some are in a bucket and some are not
            return first
        inside = inside.parent
    return inside


def folders_of_files(pattern: str) -> list[str]:
    """Returns the directories of the files that --input names or finds by a pattern."""
    places = [place for _, found in named(pattern) for place in found]
    return sorted({os.fspath(place if place.is_dir() else place.parent) for place in places})


def identity(
    patterns: str | Sequence[str], *, suffixes: Sequence[str] = (), without: str = ""
) -> str:
    """Returns a hash of the names, sizes and times of all files that an option names.

    It changes when files are added, removed or written again.

    Args:
      patterns: as --input, or a list of such.
      suffixes: count files with these suffixes only; () = all.
      without: a directory to leave out: the output can be below the input.
    """
    stated = hashlib.sha256()
    left_out = os.path.join(_key(epath.Path(without)), "") if without else ""
    for one in [patterns] if isinstance(patterns, str) else patterns:
        for _, places in named(one):
            for place in places:
                files: Iterable[epath.Path] = files_below(place) if place.is_dir() else [place]
                for file in files:
                    if suffixes and not has_suffix(file.name, suffixes):
                        continue
                    if file.name == DATASHEET:  # it may be written after the dataset was used
                        continue
                    if left_out and _key(file).startswith(left_out):
                        continue
                    name = os.fspath(file).removeprefix(os.fspath(place)) or file.name
                    stated.update(f"{name}\0{_state(file)}\n".encode("utf-8", "surrogatepass"))
    return stated.hexdigest()


def _state(file: epath.Path) -> str:
    try:
        if is_local(file):
            state = os.stat(file)
            return f"{state.st_size} {state.st_mtime_ns}"
        remote = file.stat()
    except OSError:
        return "missing"
    return f"{remote.length} {remote.mtime}"


def named(pattern: str) -> Iterator[tuple[str, list[epath.Path]]]:
    """Yields each part of an option with the files and directories that it names, maybe none.

    The longest part that exists is taken, since a name can contain commas.
    """
    pieces = pattern.split(",")
    start = 0
    while start < len(pieces):
        stops = [len(pieces), *range(min(start + _MOST_COMMAS, len(pieces) - 1), start, -1)]
        parts = [",".join(pieces[start:stop]) for stop in stops]
        chosen = next((part for part in parts if part and _existing(part)), None)
        if chosen is None:
            # No such file: a pattern, which can contain commas too.
            patterns = [part for part in reversed(parts) if _WILD & set(part) and _matches(part)]
            chosen = patterns[0] if patterns else pieces[start]
        if chosen:
            yield chosen, _matches(chosen)
        start += chosen.count(",") + 1


def _existing(name: str) -> epath.Path | None:
    """Returns the path of a file or directory, in the form in which its name exists."""
    place = epath.Path(name).expanduser()
    try:
        if place.exists():
            return place
        if not os.fspath(place).isascii():
            paths = map(epath.Path, forms(os.fspath(place)))
            return next((path for path in paths if path.exists()), None)
    except (OSError, ValueError):  # a name that the file system cannot have
        pass
    return None


def _matches(name: str) -> list[epath.Path]:
    """Returns what a path or a pattern names, in order; what exists is taken literally."""
    literal = _existing(name)
    if literal is not None:
        return [literal]
    place = epath.Path(name).expanduser()
    if not _WILD & set(os.fspath(place)) or place.parent == place:
        return []
    found: list[epath.Path] = []
    for parent in _matches(os.fspath(place.parent)):
        if not parent.is_dir():
            continue
        if place.name == "**":
            found += [parent, *_directories(parent)]
        elif _WILD & set(place.name) and _existing(os.fspath(parent / place.name)) is None:
            found += [
                entry
                for entry in (path for path, _ in listed(parent))
                if _fits(entry.name, place.name)
            ]
        elif (child := _existing(os.fspath(parent / place.name))) is not None:
            found.append(child)
    return list(dict.fromkeys(found))


def _directories(place: epath.Path) -> Iterator[epath.Path]:
    for entry, is_directory in listed(place):
        is_link = is_local(entry) and os.path.islink(entry)  # not followed, as in a shell
        if is_directory and not is_link and not is_clutter(entry.name):
            yield entry
            yield from _directories(entry)


def _fits(name: str, pattern: str) -> bool:
    if is_clutter(name) and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(*(unicodedata.normalize("NFC", text) for text in (name, pattern)))


def _is_pattern(one: str) -> bool:
    return bool(_WILD & set(one)) and _existing(one) is None


def _fixed(pattern: epath.Path) -> epath.Path:
    """Returns the longest part of a pattern that is a directory."""
    place = pattern.expanduser()
    while not place.is_dir() and place.parent != place:
        place = place.parent
    return place


def _is_clutter(file: epath.Path, root: epath.Path) -> bool:
    return any(map(is_clutter, file.relative_to(root).parts))


def _instead(others: Collection[epath.Path]) -> str:
    """Describes what was found instead, as " (there are 3 .csv)"."""
    counts = collections.Counter(suffix_of(file.name) for file in others)
    found = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(3))
    return f" (there are {found})" if found else ""


def _key(path: epath.Path) -> str:
    """Returns the same text for two ways to name one path."""
    return os.path.abspath(path) if is_local(path) else os.fspath(path)
