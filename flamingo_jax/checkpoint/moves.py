"""Puts a complete directory in the place of another one."""

from __future__ import annotations

import os

from flamingo_jax.core.paths import Path, PathError, PathLike, temporary_sibling


def move_directory(source: PathLike, target: PathLike) -> Path:
    """Renames a complete directory to `target`, and removes what `target` was before.

    On a file system the new content appears at once. On an object store, epath copies and deletes
    object by object: write in place there instead.

    Raises:
        PathError: if the rename fails; then the old content is restored.
    """
    new, old = Path(source), Path(target)
    aside = temporary_sibling(old) if old.exists() else None
    try:
        if aside:
            old.rename(aside)
        new.rename(old)
    except OSError as error:
        if aside and aside.exists() and not old.exists():
            aside.rename(old)
        raise PathError(
            f"Cannot move {new} to {old}: {error.strerror or error}. Give a writable place."
        ) from error
    if aside and os.path.islink(aside):
        aside.unlink()  # what it names is not ours to delete
    elif aside:
        aside.rmtree()
    return old
