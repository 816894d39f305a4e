"""Lists files in directories, in the same order for all programs.

One program embeds the images of a directory; another finds them again by their number.
"""

import os
from collections.abc import Iterable, Iterator

from flamingo_jax.core.paths import Path, PathLike, regular
from flamingo_jax.core.paths import is_local as is_local  # for data_pipelines too
from flamingo_jax.core.paths import listed as listed
from flamingo_jax.core.paths import temporary_file as temporary_file

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    *(".gif", ".bmp", ".tif", ".tiff", ".avif"),
)

DATASHEET = "DATASHEET.md"  # of a dataset, for people (flamingo_jax.cards)

_PACKED = (".gz", ".zst", ".zip", ".bz2", ".xz", ".lz4", ".br")  # behind another suffix
_CLUTTER = ("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir")


def has_suffix(path: str, suffixes: Iterable[str]) -> bool:
    """Returns True if a path ends in one of the suffixes; case does not count."""
    return path.lower().endswith(tuple(suffixes))


def is_clutter(name: str) -> bool:
    """Returns True for a name that systems and editors leave behind, such as ._1.jpg, .DS_Store.

    Nobody means such a file or directory as data. Files for macOS's metadata (._1.jpg) even have
    the name of an image.
    """
    return name.startswith(".") or name in _CLUTTER


def suffix_of(path: str) -> str:
    """Returns what a file that is passed over is counted as: its suffix, or the kind of clutter."""
    name = os.path.basename(path)
    if name.startswith("._"):
        return "._*"
    if is_clutter(name):
        return name
    stem, suffix = os.path.splitext(name.lower())
    if suffix in _PACKED:
        suffix = os.path.splitext(stem)[1] + suffix
    return suffix.encode("utf-8", "replace").decode() or "(no suffix)"


def files_below(directory: PathLike, *, with_clutter: bool = False) -> Iterator[Path]:
    """Yields all files in a directory and its subdirectories, in the order of their names.

    Links are followed, except to a directory that contains them. Devices and pipes are no files.

    Args:
        directory: where to look.
        with_clutter: also yield what `is_clutter` names, and what is in such directories.
    """
    yield from _below(Path(directory), with_clutter, ())


def _below(directory: Path, with_clutter: bool, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(directory) if is_local(directory) else os.fspath(directory)
    if real in above:  # a link to a directory that contains it
        return
    for path, is_directory in listed(directory):
        if not with_clutter and is_clutter(path.name):
            continue
        if is_directory:
            yield from _below(path, with_clutter, (*above, real))
        else:
            yield path


def not_files(directory: PathLike) -> Iterator[Path]:
    """Yields the devices, pipes and sockets of a directory, which `listed` leaves out.

    A library that opens what has the name of its file may wait for ever.
    """
    if is_local(directory):
        known = {entry.name for entry, _ in listed(directory)}
        yield from (entry for entry in Path(directory).iterdir() if entry.name not in known)


def refuse_pipes(directory: PathLike) -> None:
    """Raises NotAFileError if a directory holds one of `not_files`."""
    for entry in not_files(directory):
        regular(entry)


def without_clutter(directory: PathLike) -> list[tuple[Path, bool]]:
    """Returns what `core.paths.listed` does, without what `is_clutter` names."""
    return [each for each in listed(directory) if not is_clutter(each[0].name)]


def image_files(directory: PathLike) -> Iterator[Path]:
    """Yields the image files of `files_below`; nothing if the directory does not exist."""
    if Path(directory).is_dir():
        yield from (
            file for file in files_below(directory) if file.suffix.lower() in IMAGE_SUFFIXES
        )
