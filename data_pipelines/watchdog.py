"""Names the input of a worker that dies, or that is stuck in code which Python cannot interrupt.

    worker     collect  --note: the file, the record, the CPU time then-->  NOTES/PID
    launcher   each second: is a worker dead, or far over its limit of CPU time?
               --> the worker is ended, the error names what the note says

A library in C can crash on a damaged file, and the system kills a process for which there is no
memory. Beam then only says that a channel is closed, and waits for the other workers without an
end. With one worker the launcher is the worker, so the program runs in a child process
(`supervised`). All of this needs Linux and Beam's DirectRunner. Elsewhere no notes are written.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from flamingo_jax.core.paths import made_temporary_directory, regular, shared_memory

_PLACE = "FLAMINGO_JAX_NOTES"  # environment variable with the directory of the notes
_HEAD = struct.Struct("<ddQ")  # CPU seconds at the last record, limit of a record, records so far
_SIZE = 4096  # bytes of a note
_INTERVAL = 1.0  # seconds between two looks
_DO = (
    "Nothing was written. Move the file away or write it again, then repeat the command. If the "
    "system had no memory left, use fewer workers (--num_workers)."
)


class WorkerDied(RuntimeError):
    """A worker died while it read a file, or was ended because it was stuck there."""


class Note:
    """What this thread reads, where other processes can see it.

    Args:
      unit: what is read, in words.
      limit: CPU seconds without a record after which the process counts as stuck.
    """

    def __init__(self, unit: str, limit: float):
        self._unit, self._limit, self._records = unit, limit, 0
        self._page: bytearray | mmap.mmap = bytearray(_SIZE)
        self._file: epath.Path | None = None
        if (place := os.environ.get(_PLACE)) and epath.Path(place).is_dir():
            self._file = epath.Path(place) / str(os.getpid())
            self._page = shared_memory(self._file, _SIZE)
        self.write("")

    def write(self, detail: str) -> None:
        """Says what is read now, within the unit."""
        text = f"{self._unit}{detail and f', {detail}'}".encode(errors="replace")
        text = text[: _SIZE - _HEAD.size]
        self._page[_HEAD.size :] = text + bytes(_SIZE - _HEAD.size - len(text))
        self._start()

    def count(self) -> None:
        """Says that one more record is done."""
        self._records += 1
        self._start()

    def end(self) -> None:
        """Removes the note."""
        if self._file:
            self._file.unlink(missing_ok=True)

    def _start(self) -> None:
        _HEAD.pack_into(self._page, 0, time.process_time(), self._limit, self._records)


_current = threading.local()


@contextlib.contextmanager
def noted(unit: object, limit: float) -> Iterator[Note]:
    """Keeps a note of a unit while it is read."""
    _current.note = note = Note(_in_words(unit), limit)
    try:
        yield note
    finally:
        _current.note = None
        note.end()


def at(detail: str) -> None:
    """Adds to the note of this thread, if there is one, what part of the unit is read now."""
    if note := getattr(_current, "note", None):
        note.write(detail)


def _in_words(unit: Any) -> str:
    if isinstance(unit, tuple):
        return f"one of {len(unit)} files, {unit[0]} to {unit[-1]}"
    return str(getattr(unit, "path", unit))


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Watches the worker processes that are started inside the `with` statement.

    Raises:
      WorkerDied: one of them died, or was stuck. The others are ended.
    """
    with _place() as directory, _ending_stuck(directory) as stuck:
        try:
            yield
        except Exception as error:
            if not (died := stuck or _died(directory)):
                raise
            for pid in _workers(directory):  # Beam would wait for them without an end
                _kill(pid)
            raise WorkerDied(f"{'; '.join(died)}. {_DO}") from error


@contextlib.contextmanager
def _ending_stuck(directory: str, only: int | None = None) -> Iterator[list[str]]:
    """Ends stuck processes inside the `with` statement; yields the list of what they read.

    Args:
      directory: of the notes.
      only: the process to look at; None = all that have a note.
    """
    ended, stuck = threading.Event(), list[str]()

    def watch() -> None:
        while not ended.wait(_INTERVAL):
            for pid, note in _notes(directory):
                if only in (None, pid) and (reason := _stuck(pid, note)):
                    stuck.append(reason)
                    _kill(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stuck
    finally:
        ended.set()
        thread.join()


def supervised(program: Callable[[], None]) -> None:
    """Runs a program in a child process, and says what it was reading if it dies.

    Ends this process with the exit status of the program.
    """
    if not sys.platform.startswith("linux"):
        program()
        return
    with _place() as directory:
        sys.stdout.flush()
        parent, child = os.getpid(), os.fork()
        if not child:
            _die_with(parent)
            program()
            sys.exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child, too
        signal.signal(signal.SIGTERM, lambda sent, _: os.kill(child, sent))
        with _ending_stuck(directory, only=child) as stuck:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status >= 0:
            sys.exit(status)
        name = signal.Signals(-status).name
        if -status in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            sys.exit(128 - status)
        died = stuck or [
            f"the program was ended by {name} while it read {_text(note)}"
            for pid, note in _notes(directory)
        ]
        what = "; ".join(died) or f"the program was ended by {name}"
        sys.exit(f"data_pipelines.run: {what}. {_DO}")


@contextlib.contextmanager
def _place() -> Iterator[str]:
    """Yields the directory of the notes: that of a process above this one, or a new one."""
    if known := os.environ.get(_PLACE):
        yield known
        return
    directory, owner = os.fspath(made_temporary_directory("notes-")), os.getpid()
    os.environ[_PLACE] = directory
    try:
        yield directory
    finally:
        if os.getpid() == owner:  # not in a child process that ends
            del os.environ[_PLACE]
            epath.Path(directory).rmtree(missing_ok=True)


def _notes(directory: str) -> list[tuple[int, bytes]]:
    found = []
    for file in epath.Path(directory).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # its unit ends in this moment
            if len(note := regular(file).read_bytes()) == _SIZE:
                found.append((int(file.name), note))
    return found


def _text(note: bytes) -> str:
    records = _HEAD.unpack_from(note)[2]
    text = note[_HEAD.size :].rstrip(b"\0").decode(errors="replace")
    return f"{text} (after {records} records of it)"


def _died(directory: str) -> list[str]:
    """Says what the dead workers read. Those that Beam ends after them are still alive then."""
    for wait in (0.0, 0.5):  # the worker can be about to end
        time.sleep(wait)
        notes = _notes(directory)
        if dead := [note for pid, note in notes if _cpu(pid) is None]:
            return [f"a worker died while it read {_text(note)}" for note in dead]
    return []


def _workers(directory: str) -> Iterator[int]:
    """Yields the processes that were started with this directory of notes."""
    mark = f"{_PLACE}={directory}".encode()
    for file in epath.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if mark in regular(file).read_bytes().split(b"\0"):
                yield int(file.parent.name)


def _stuck(pid: int, note: bytes) -> str:
    before, limit, _ = _HEAD.unpack_from(note)
    now = _cpu(pid)
    if now is None or not limit or now - before <= limit:
        return ""
    return f"a worker was ended after {now - before:.0f} s of CPU time in {_text(note)}"


def _cpu(pid: int) -> float | None:
    """Returns the CPU seconds of a process; None if it has ended, or this is not Linux."""
    try:
        fields = epath.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if fields[0] in "ZX":
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Ends this process when its parent ends, so that no run goes on unseen."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
