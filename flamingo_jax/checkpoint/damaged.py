"""Keeps what is damaged, in WORKDIR/damaged: nothing of it is deleted."""

from __future__ import annotations

import itertools

import jax

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.processes import from_first_process


def set_aside(place: PathLike, workdir: PathLike) -> Path:
    """Moves a file or directory to WORKDIR/damaged, under its name or NAME-2, NAME-3, ...

    Returns:
        Where it is now.

    Raises:
        PathError: if it cannot be moved.
    """
    source, kept = Path(place), paths.make_directory(Path(workdir) / "damaged")
    there = {each.name for each in kept.iterdir()}  # also links to nothing
    numbered = (f"{source.name}-{number}" for number in itertools.count(2))
    name = next(name for name in itertools.chain([source.name], numbered) if name not in there)
    target = kept / name
    try:
        source.rename(target)
    except OSError as error:
        raise paths.PathError(
            f"Cannot move {source}, which is damaged, to {target}: {error}. Give a writable place."
        ) from error
    return target


def set_aside_by_first(place: PathLike, workdir: PathLike) -> str:
    """Lets the first process do `set_aside`; the others wait for it, and all get its answer."""
    is_first = jax.process_index() == 0
    return from_first_process(str(set_aside(place, workdir)) if is_first else "")
