"""Keeps what is damaged, in WORKDIR/damaged: nothing of it is deleted."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable

import jax

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.processes import from_first_process


def set_aside(place: PathLike, workdir: PathLike) -> Path:
    """Moves a file or directory to WORKDIR/damaged, under its name or NAME-2, NAME-3, ...

    WORKDIR/checkpoints may be a link to another file system, where no rename to WORKDIR is
    possible. Then it goes to WORKDIR/checkpoints/damaged: a copy would read the damaged disk again.

    Returns:
        Where it is now.

    Raises:
        PathError: if it cannot be moved; then nothing has changed.
    """
    source = Path(place)
    try:
        return _renamed(source, Path(workdir) / "damaged")
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise _refused(source, Path(workdir) / "damaged", error) from error
    kept = Path(workdir) / "checkpoints" / "damaged"
    try:
        return _renamed(source, kept)
    except OSError as error:
        raise _refused(source, kept, error) from error


def set_links_aside(directory: Path, suffix: str, report: Callable[[str], None]) -> None:
    """Moves links with the name of a save that was not complete to the workdir's damaged/.

    Orbax removes such directories and files. At a link the next save of this step would fail.

    Args:
        directory: WORKDIR/checkpoints.
        suffix: the end of these names.
        report: receives a line about each.
    """
    if not paths.is_local(directory):
        return
    for place in sorted(directory.iterdir()):
        if place.name.endswith(suffix) and os.path.islink(place):
            kept = set_aside(place, directory.parent)
            report(f"{place} is a link, where a step is saved first. It is moved to {kept}.")


def _renamed(source: Path, directory: Path) -> Path:
    kept = paths.make_directory(directory)
    there = {each.name for each in kept.iterdir()}  # also links to nothing
    numbered = (f"{source.name}-{number}" for number in itertools.count(2))
    name = next(name for name in itertools.chain([source.name], numbered) if name not in there)
    target = kept / name
    source.rename(target)
    return target


def _refused(source: Path, kept: Path, error: OSError) -> paths.PathError:
    return paths.PathError(
        f"Cannot move {source}, which is damaged, to {kept}: {error.strerror or error}. Give a "
        "writable place."
    )


def set_aside_by_first(place: PathLike, workdir: PathLike) -> str:
    """Lets the first process do `set_aside`; the others wait for it, and all get its answer."""
    is_first = jax.process_index() == 0
    return from_first_process(str(set_aside(place, workdir)) if is_first else "")
