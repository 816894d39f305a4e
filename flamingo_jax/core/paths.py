"""Reads and writes files, local or on gs://, through etils.epath.

No other file of the package calls open() or imports pathlib (a test checks it). On a file system a
rename is atomic. On an object store a single object appears atomically when its upload ends, but a
directory cannot be renamed at once: there it is written in place, and the last file marks it as
complete (see `checkpoint.moves`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from etils import epath

from flamingo_jax.core import object_store
from flamingo_jax.core.finite import NonFiniteError

Path = epath.Path
PathLike = str | os.PathLike[str]

SCHEMES = ("gs://", "s3://")
_PATTERN = re.compile(r"[][*?\\]")


class PathError(OSError):
    """A path cannot be read or written. The message names it and says what to do."""


class NotAFileError(PathError):
    """A pipe, device, socket or directory is in the place of a file."""


def from_user(path: str) -> str:
    """Returns a path that a user typed: "~/data" and "file:///data" are local paths.

    A shell does not replace the "~" of --output=~/runs, and the program would make a folder "~".
    """
    return str(epath.Path(path.removeprefix("file://")).expanduser())


def make_directory(path: PathLike) -> epath.Path:
    """Creates a directory and its parents if they do not exist, and returns it.

    Raises:
        PathError: if it cannot be created, or is a file.
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
    """Writes a file completely or not at all; until it is complete, readers get the old content.

    When it returns, the content is on the disk and survives a loss of power.

    Raises:
        PathError: if it cannot be written.
    """
    target = epath.Path(path)
    temporary = temporary_sibling(target) if is_local(target) else target
    try:
        make_directory(target.parent)
        temporary.write_bytes(data if isinstance(data, bytes) else to_utf8(data))
        if temporary != target:
            flush(temporary)
            temporary.replace(target)
            flush(target.parent)
    except OSError as error:
        if temporary != target:
            with contextlib.suppress(OSError):  # clean up; the first error is raised below
                temporary.unlink(missing_ok=True)
        raise PathError(
            f"Cannot write {target}: {_reason(error)}. Give a writable place with room."
        ) from error
    return target


def flush(path: PathLike) -> None:
    """Waits until a local file, or the list of names in a local directory, is on the disk.

    Raises:
        OSError: if the disk reports an error.
    """
    if not is_local(path):
        return
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # to open a pipe would wait
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to wait for
            raise
    finally:
        os.close(handle)


def regular(path: PathLike) -> epath.Path:
    """Returns the path of a file to read. All reads go through it (tests/test_style.py).

    To open a pipe or a device may wait for ever, and so may a library that reads the path.

    Raises:
        NotAFileError: something else than a file is there. Nothing is raised if nothing is there.
    """
    place = epath.Path(path)
    if is_local(place) and os.path.exists(place) and not os.path.isfile(place):
        what = "a directory" if place.is_dir() else "a pipe, a socket or a device"
        raise NotAFileError(f"Cannot read {place}: it is {what}, expected a file.")
    return place


def blocks(path: PathLike) -> Iterator[bytes]:
    """Yields the content of a file in blocks of 4 MiB; OSError if it cannot be read."""
    with regular(path).open("rb") as file:
        while block := file.read(4 << 20):
            yield block


def stamp(path: PathLike) -> tuple[int, ...]:
    """Returns numbers that differ after a file was written again.

    Raises:
        OSError: if there is no such file.

    Returns:
        The time of its last change in ns since 1970, and others, such as its size.
    """
    if is_local(path):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ctime_ns, found.st_ino
    remote = epath.Path(path).stat()
    return remote.mtime * 10**9, remote.length


def append(path: PathLike, data: bytes) -> bytes:
    """Appends to a local file with one write; returns the rest that a full disk did not take.

    Raises:
        OSError: nothing could be written.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        return data[os.write(file, data) :]
    finally:
        os.close(file)


def create(path: PathLike, text: str) -> bool:
    """Writes a new file, or returns False if there is one: of several writers one succeeds.

    On a file system: O_EXCL, which NFS 3 and later have too. On gs:// and s3:// (gcsfs, s3fs): one
    request, on the condition that there is no object.

    Raises:
        PathError: if the file cannot be written.
    """
    target, data = epath.Path(path), to_utf8(text)
    try:
        if not is_local(target):
            object_store.create(str(target), data)
        else:
            with open(target, "xb") as file:
                file.write(data)
    except FileExistsError:
        return False
    except OSError as error:
        raise PathError(
            f"Cannot write {target}: {_reason(error)}. Give a writable place with room."
        ) from error
    return True


def read_json(path: PathLike) -> Any:
    """Returns the content of a JSON file.

    Raises:
        PathError: if there is no such file, or it is not valid JSON.
    """
    file = epath.Path(path)
    try:
        text = regular(file).read_text()
    except NotAFileError:
        raise
    except FileNotFoundError as error:
        raise PathError(f"There is no file {file}. Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise PathError(f"Cannot read {file}: {_reason(error)}.") from error
    try:
        return parse_json(text)
    except ValueError as error:
        raise PathError(
            f"{file} is not valid JSON: {error}. It is cut off or damaged: write it again."
        ) from error


def parse_json(
    text: str, *, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    r"""Returns the value of a JSON text that someone else wrote.

    A byte order mark is skipped. Half a surrogate pair ("\ud83d" alone) becomes U+FFFD: no
    tokenizer and no file takes it.

    Args:
        text: the content of a file, or a line of one.
        make_object: makes the value of an object from its names and values; a dict by default.

    Raises:
        ValueError: if it is not JSON, or has a number of thousands of digits or thousands of nested
            lists, which Python does not read.
    """
    try:
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=make_object)
        return _whole(value) if re.search(r"\\u[dD][89a-fA-F]", text) else value
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error


def to_utf8(text: str) -> bytes:
    r"""Returns the bytes of a text; half a surrogate pair becomes "\ud83d", as JSON writes it.

    A JSON file may hold one, and so may an argument of a program that is not UTF-8. It must not end
    a run when the results are written.
    """
    return text.encode("utf-8", "backslashreplace")


def whole_characters(text: str) -> str:
    """Returns a text with U+FFFD for each half of a surrogate pair, as decoders do."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _whole(value: Any) -> Any:
    """Applies `whole_characters` to all texts of a JSON value."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {whole_characters(name): _whole(each) for name, each in value.items()}
    return value


def write_json(path: PathLike, value: Any) -> epath.Path:
    """Writes a JSON file atomically, indented, with the keys in the order of `value`.

    Raises:
        PathError: if it cannot be written.
        TypeError: if JSON cannot represent `value`.
        NonFiniteError: a number is NaN or infinite, which JSON does not have; nothing is written.
    """
    return write_atomically(path, json_text(path, value))


def json_text(path: PathLike, value: Any) -> str:
    """Returns what `write_json` writes to a file.

    Raises:
        TypeError: if JSON cannot represent `value`.
        NonFiniteError: a number is NaN or infinite.
    """
    try:
        return f"{json.dumps(value, indent=2, allow_nan=False)}\n"
    except ValueError as error:
        raise NonFiniteError(
            f"Cannot write {path}: a number is NaN or infinite, which JSON does not have."
        ) from error


@contextlib.contextmanager
def only_writer(directory: PathLike) -> Iterator[bool]:
    """Holds a directory, so that a second run cannot write into it at the same time.

    The lock ends with the process, however it ends. It is a lock of the operating system on the
    directory itself. On an object store, and on a file system without locks, there is none: then it
    yields False.

    Raises:
        PathError: if another run holds it, or it cannot be made.
    """
    place = make_directory(directory)
    if not is_local(place):
        yield False
        return
    handle, locked = os.open(place, os.O_RDONLY), True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise PathError(
            f"Another run writes to {place} now. Wait until it ends, or give another directory."
        ) from error
    except OSError:  # no locks here, as on some network file systems
        locked = False
    try:
        yield locked
    finally:
        os.close(handle)


def is_local(path: PathLike) -> bool:
    """Returns True if a path is on a file system, False if on an object store such as gs://."""
    return "://" not in str(epath.Path(path))


def listed(directory: PathLike) -> list[tuple[epath.Path, bool]]:
    """Returns what a directory contains, in the order of names, and whether each is a directory.

    Devices, pipes and sockets are left out: to open them can wait for ever. A link to nothing is
    listed, so that its reader reports it.

    Raises:
        OSError: the directory cannot be read.
    """
    place = epath.Path(directory)
    if not is_local(place):
        return [(entry, entry.is_dir()) for entry in sorted(place.iterdir())]
    with os.scandir(place) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    return [
        (place / entry.name, entry.is_dir())
        for entry in entries
        if entry.is_dir()
        or entry.is_file()
        or (entry.is_symlink() and not os.path.exists(entry.path))
    ]


def absolute(path: PathLike) -> epath.Path:
    """Returns a path as an absolute one, which orbax requires; gs:// paths are absolute."""
    place = epath.Path(path)
    return place.expanduser().resolve() if is_local(place) else place


def is_plain(name: PathLike) -> bool:
    r"""Returns False if a path has one of [ ] * ? \, which some libraries read as a pattern.

    Or if it is not UTF-8, which others do not take.
    """
    return not _PATTERN.search(str(name)) and whole_characters(str(name)) == str(name)


@contextlib.contextmanager
def plain_name(directory: PathLike) -> Iterator[epath.Path]:
    r"""Gives another name of a directory, for libraries that do not take all names; see `is_plain`.

    It is the directory itself if its path is plain. Otherwise it is its open handle in
    /proc, which only this process knows, and which is gone when the process ends.

    Raises:
        PathError: if it is not there, or this system has no such names.
    """
    place = absolute(directory)
    if not is_local(place) or is_plain(place):
        yield place
        return
    try:
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PathError(f"Cannot read {place}: {_reason(error)}.") from error
    try:
        name = epath.Path(f"/proc/self/fd/{handle}")
        if not name.exists():
            raise PathError(
                rf"Cannot use {place}: its name has one of [ ] * ? \, or is not UTF-8. Give "
                "another directory."
            )
        yield name
    finally:
        os.close(handle)


def temporary_sibling(path: PathLike) -> epath.Path:
    """Returns a new hidden name in the directory of `path`, to be renamed to `path` later."""
    target = epath.Path(path)
    return target.parent / f".{target.name}.tmp-{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[epath.Path]:
    """Creates a local directory (env TMPDIR says where), which is removed when the context ends."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        yield epath.Path(name)


def temporary_file() -> BinaryIO:
    """Returns an open file without a name on this machine; it is gone when it is closed."""
    return cast(BinaryIO, tempfile.TemporaryFile())


def made_temporary_directory(prefix: str) -> epath.Path:
    """Creates a local directory as `temporary_directory` does. The caller removes it."""
    return epath.Path(tempfile.mkdtemp(prefix=prefix))


def shared_memory(path: PathLike, size: int) -> mmap.mmap:
    """Makes a local file of `size` zero bytes and maps it: other processes read what is written."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(file, size)
        return mmap.mmap(file, size)
    finally:
        os.close(file)


@contextlib.contextmanager
def written_locally(path: PathLike) -> Iterator[epath.Path]:
    """Gives another library a local file to write, which becomes `path` when the context ends.

    After an error `path` is unchanged.

    Raises:
        PathError: if its directory cannot be created.
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


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
