"""The one door to files: every path may be local or gs://, through etils.epath.

Nothing else in the package calls open() or imports pathlib (a test looks). A rename is atomic on a
file system; on an object store a single object appears atomically when its upload ends, but a
directory cannot be renamed at once, so there a directory is written in place and its last file is
the mark of completeness (see `move_directory`).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

Path = epath.Path
PathLike = str | os.PathLike[str]


class PathError(OSError):
    """A path that cannot be read or written; the message says which, and what to do."""


def make_directory(path: PathLike) -> epath.Path:
    """Makes a directory with its parents, if it is not there, and returns it.

    Raises:
        PathError: if it cannot be made, or is a file.
    """
    directory = epath.Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathError(
            f"Cannot make the directory {directory}: {_reason(error)}. Give a writable place."
        ) from error
    return directory


def write_atomically(path: PathLike, data: bytes | str) -> epath.Path:
    """Writes a file whole or not at all: whoever reads it meanwhile sees the old content.

    Raises:
        PathError: if it cannot be written.
    """
    target = epath.Path(path)
    temporary = temporary_sibling(target) if is_local(target) else target
    try:
        make_directory(target.parent)
        if isinstance(data, bytes):
            temporary.write_bytes(data)
        else:
            temporary.write_text(data)
        if temporary != target:
            temporary.replace(target)
    except OSError as error:
        if temporary != target:
            with contextlib.suppress(OSError):  # clearing up: the error that counts is on its way
                temporary.unlink(missing_ok=True)
        raise PathError(
            f"Cannot write {target}: {_reason(error)}. Give a writable place with room."
        ) from error
    return target


def read_json(path: PathLike) -> Any:
    """Returns the content of a JSON file.

    Raises:
        PathError: if there is no such file, or it is not JSON (cut off, for one).
    """
    file = epath.Path(path)
    try:
        text = file.read_text()
    except FileNotFoundError as error:
        raise PathError(f"There is no file {file}. Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"Cannot read {file}: {_reason(error)}.") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PathError(
            f"{file} is not valid JSON: {error}. It is cut off or damaged: write it again."
        ) from error


def write_json(path: PathLike, value: Any) -> epath.Path:
    """Writes a JSON file atomically, indented, with the keys in their order.

    Raises:
        PathError: if it cannot be written.
        TypeError: if `value` holds what JSON cannot.
    """
    return write_atomically(path, json.dumps(value, indent=2) + "\n")


def is_local(path: PathLike) -> bool:
    """Whether a path is on a file system, where renames are atomic, rather than on an object store such as gs://."""
    return "://" not in str(epath.Path(path))


def absolute(path: PathLike) -> epath.Path:
    """Returns the same place as an absolute path; orbax takes no other.

    A gs:// path is one already.
    """
    place = epath.Path(path)
    return place.expanduser().resolve() if is_local(place) else place


def temporary_sibling(path: PathLike) -> epath.Path:
    """Returns a fresh hidden name beside `path`, from which a rename to `path` stays on one file system."""
    target = epath.Path(path)
    return target.parent / f".{target.name}.tmp-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[epath.Path]:
    """Makes a local directory for what another library writes (env TMPDIR says where), gone when the context ends."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        yield epath.Path(name)


@contextlib.contextmanager
def written_locally(path: PathLike) -> Iterator[epath.Path]:
    """A local place for a file that another library writes.

    What is there goes to `path` when the context ends well, and nothing else.

    Raises:
        PathError: its directory cannot be made.
    """
    target = epath.Path(path)
    with contextlib.ExitStack() as stack:
        if is_local(target):
            make_directory(target.parent)
            temporary = temporary_sibling(target)
            stack.callback(temporary.unlink, missing_ok=True)
            yield temporary
            temporary.replace(target)
        else:
            temporary = stack.enter_context(temporary_directory("file-")) / target.name
            yield temporary
            temporary.copy(target, overwrite=True)


def move_directory(source: PathLike, target: PathLike) -> epath.Path:
    """Puts a complete directory in the place of `target`; what was there is removed afterwards.

    On a file system the new content appears at once. On an object store epath copies and deletes
    object by object: write in place there instead.

    Raises:
        PathError: if the rename fails; then the old content is back in its place.
    """
    new, old = epath.Path(source), epath.Path(target)
    aside = temporary_sibling(old) if old.exists() else None
    try:
        if aside:
            old.rename(aside)
        new.rename(old)
    except OSError as error:
        if aside and aside.exists() and not old.exists():
            aside.rename(old)
        raise PathError(
            f"Cannot move {new} to {old}: {_reason(error)}. Give a writable place."
        ) from error
    if aside:
        aside.rmtree()
    return old


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
