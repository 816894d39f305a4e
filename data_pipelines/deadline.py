"""A limit of CPU time for work on one piece of untrusted input.

    with cpu_limit(60.0):
        page = html_to_page(body, url)

Workers of Apache Beam run their records in threads, where signals do not arrive. So one thread per
process looks at the CPU time of each limited thread and raises `TooSlow` in it. CPU time, not the
time of a clock: a busy machine must not change which records are kept.

Python code is interrupted at its next step. Code in C (a regular expression, the HTML parser) is
interrupted when it returns; if it does not, `watchdog.py` ends the worker. That its time does not
grow with the square of the input is tested in tests/test_growth.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from data_pipelines import watchdog
from data_pipelines.page import Reject

SECONDS = 60.0  # default limit of a record: some thousand times what one needs

_Record = TypeVar("_Record")
_Item = TypeVar("_Item")

_INTERVAL = 0.1  # seconds between two looks


class TooSlow(Exception):
    """Some work has used more CPU time than it may."""


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Limits the CPU time of this thread inside the `with` statement.

    Args:
      seconds: of CPU time, above 0.

    Raises:
      TooSlow: the work has used more. It is raised where the work is at that moment.
    """
    work = _Work(seconds)
    _watch(work)
    try:
        try:
            yield
        finally:
            work.end()
    except TooSlow:
        work.end()
    # Code that catches every exception can end the work as if there had been none.
    if work.was_interrupted:
        raise TooSlow(f"more than {seconds:g} seconds of CPU time")


def in_time(
    seconds: float, name: str, make: Callable[[], Iterable[_Item]]
) -> Iterator[_Item | Reject]:
    """Yields what is made of one record; one Reject for too_slow if that takes too long.

    Args:
      seconds: limit of CPU time.
      name: of the record, for the report, and for the error if its worker dies.
      make: makes the items. None of them is yielded before the last one is made.
    """
    watchdog.at(name)
    made: list[_Item | Reject] = []
    try:
        with cpu_limit(seconds):
            made.extend(make())
    except TooSlow as error:
        made = [Reject("too_slow", f"{name}: {error}", broken=True)]
    yield from made


def each_in_time(
    records: Iterable[_Record | Reject],
    make: Callable[[_Record], Iterable[_Item]],
    *,
    seconds: float,
    place: str,
) -> Iterator[_Item | Reject]:
    """Yields what is made of each record as `in_time` does it, and each Reject as it is.

    Args:
      records: of a file.
      make: makes the items of one record.
      seconds: limit of CPU time for one record.
      place: the file.
    """
    for number, record in enumerate(records):
        if isinstance(record, Reject):
            yield record
        else:
            name = f"{place}: record {number}"
            yield from in_time(seconds, name, functools.partial(make, record))


def check_seconds(pipeline: str, seconds: float) -> None:
    """Raises ValueError if --max_record_seconds is not positive."""
    if not seconds > 0:
        raise ValueError(f"{pipeline}: got --max_record_seconds={seconds}, expected more than 0.")


class _Work:
    """What one thread does inside one `cpu_limit`."""

    def __init__(self, seconds: float):
        self._thread = threading.get_ident()
        self._seconds = seconds
        self._limit = 0.0  # on the thread's clock; 0 = nobody has looked yet
        self._lock = threading.Lock()  # while it is held, the work neither ends nor is interrupted
        self.was_interrupted = self.has_ended = False

    def look(self) -> None:
        """Interrupts the work if its time is over. Called by the watching thread.

        The time counts from the first look: to read the clock of every record costs more than to
        read a short record.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self.has_ended:
                return
            now = time.clock_gettime(time.pthread_getcpuclockid(self._thread))
            if not self._limit:
                self._limit = now + self._seconds
            elif now > self._limit:
                self._limit += 1.0  # code that catches every exception is interrupted again
                self.was_interrupted = True
                _raise_in(self._thread, TooSlow)
        finally:
            self._lock.release()

    def end(self) -> None:
        """Ends the work: afterwards no exception comes any more. Called by the working thread."""
        with self._lock:
            self.has_ended = True
        if self.was_interrupted:
            _raise_in(self._thread, None)  # one that was sent and has not arrived


def _raise_in(thread: int, error: type[TooSlow] | None) -> None:
    """Raises an exception in another thread at its next step; None: takes it back."""
    raised = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


_works: set[_Work] = set()
_started = threading.Lock()
_watcher: threading.Thread | None = None


def _watch(work: _Work) -> None:
    """Adds a work to those that are looked at, and starts the watching thread if there is none."""
    global _watcher  # one thread per process; a forked process starts its own
    with _started:
        _works.add(work)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_look_at_all, name="cpu_limit", daemon=True)
            _watcher.start()


def _look_at_all() -> None:
    while True:
        time.sleep(_INTERVAL)
        with _started:
            _works.difference_update([work for work in _works if work.has_ended])
            works = list(_works)
        for work in works:
            with contextlib.suppress(OSError):  # the thread has ended
                work.look()
