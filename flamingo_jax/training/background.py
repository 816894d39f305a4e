"""Writes reports from a thread of its own: training never waits for a disk, a network or a screen.

    training --put--> pending reports --thread--> Sink.write, Sink.sync --> a file, a screen

A report that cannot be written is tried again, after 1, 2, 4, ... and at most 60 seconds. What
fails first is one warning. At the end one line counts the reports that were not written.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from flamingo_jax.checkpoint.arrays import first_line

Numbers = dict[str, Any]  # float, or a list of floats with one entry per layer

STUCK_SECONDS = 60.0  # a sink that does not return in this time is named in a warning
_LONGEST_WAIT = 60.0  # seconds between two attempts
_WAIT_AT_END = 0.2
_ATTEMPTS_AT_END = 3  # of a sink that may lose reports


@runtime_checkable
class Sink(Protocol):
    """Where reports go. Its methods may raise any error: they are then called again."""

    name: str

    def write(self, step: int, numbers: Numbers) -> None:
        """Writes a report. After an error it is called again with the same report."""

    def sync(self, *, now: bool) -> None:
        """Makes safe what was written: at once, or when the sink finds that it is time."""

    def close(self) -> None:
        """Ends; nothing is written after it."""

    @property
    def num_unsafe(self) -> int:
        """Number of the last reports that were written and are not safe yet."""


def curves(numbers: Numbers) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a report; a list has a curve for each entry, "gates/dense/0"."""
    for name, value in numbers.items():
        for i, number in enumerate(np.ravel(value)):
            yield (name if np.ndim(value) == 0 else f"{name}/{i}"), float(number)


class Background:
    """Reports on their way to one sink."""

    def __init__(self, sink: Sink, warn: Callable[[str], None], *, most: int | None = None) -> None:
        """Starts the thread.

        Args:
            sink: where the reports go.
            warn: receives a line for people; it may block.
            most: reports that may wait; the oldest are then dropped and counted. None keeps all.
        """
        self._sink, self._warn, self._most = sink, warn, most
        self._pending: collections.deque[tuple[int, Numbers]] = collections.deque()
        self._current: tuple[int, Numbers] | None = None  # the thread writes it now
        self._asked = self._served = 0  # flushes
        self._dropped, self._reason = 0, ""
        self._busy_since: float | None = None  # of one call of the sink
        self._end: float | None = None  # when to give up, after `close`
        self._warnings: list[threading.Thread] = []
        self._changed = threading.Condition()
        # daemon: a sink that blocks for ever must not keep the process
        self._thread = threading.Thread(target=self._run, name=f"log {sink.name}", daemon=True)
        self._thread.start()

    def put(self, step: int, numbers: Numbers) -> None:
        """Hands a report to the thread; never waits for the sink."""
        with self._changed:
            if self._most is not None and len(self._pending) >= self._most:
                self._pending.popleft()
                self._dropped += 1
                self._warn_once(self._reason or "it does not take reports in time")
            self._pending.append((step, numbers))
            if self._busy_for() > STUCK_SECONDS:
                self._warn_once(f"it does not answer for {STUCK_SECONDS:.0f} s")
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Waits until all reports are safe, or an attempt failed, or the time is over."""
        with self._changed:
            self._asked += 1
            wanted = self._asked
            self._changed.notify_all()
            if self._busy_for() < max(seconds, 0.1):  # else it is stuck: wait no second time
                self._changed.wait_for(lambda: self._served >= wanted, seconds)

    def begin_to_close(self, seconds: float) -> None:
        """Lets the thread end when all is written, or after some seconds."""
        with self._changed:
            self._end = time.monotonic() + seconds
            self._changed.notify_all()

    def close(self) -> str:
        """Waits for the thread to end; returns a line about reports that are not written, or ""."""
        assert self._end is not None, "begin_to_close comes first"
        self._thread.join(max(self._end - time.monotonic(), 0.0) + _WAIT_AT_END)
        for warning in self._warnings:
            warning.join(1.0)
        with self._changed:
            waiting = len(self._pending) + (self._current is not None) + self._sink.num_unsafe
            if not (lost := self._dropped + waiting):
                return ""
            reason = self._reason or "it does not answer"
            return f"{self._sink.name}: {lost} reports were not written: {reason}."

    def _busy_for(self) -> float:
        return 0.0 if self._busy_since is None else time.monotonic() - self._busy_since

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                has_work = lambda: bool(
                    self._pending or self._current or self._asked > self._served or self._end
                )
                self._changed.wait_for(has_work)
                if failures:
                    self._pause(failures)
                asked, ending = self._asked, self._end is not None
            try:
                self._write_all(now=asked > self._served or ending)
            except Exception as error:  # noqa: BLE001 - whatever a library raises, training goes on
                failures += 1
                with self._changed:
                    self._reason = first_line(error)
                    self._warn_once(self._reason)
            else:
                failures = 0
            with self._changed:
                self._busy_since, self._served = None, asked
                self._changed.notify_all()
                done = ending and (not failures or self._gives_up(failures))
            if done:
                try:
                    self._sink.close()
                except Exception as error:  # noqa: BLE001 - what was not written is counted
                    self._reason = self._reason or first_line(error)
                return

    def _gives_up(self, failures: int) -> bool:
        if self._most is not None and failures >= _ATTEMPTS_AT_END:
            return True
        return time.monotonic() > (self._end or 0.0)

    def _pause(self, failures: int) -> None:
        """Waits before the next attempt, or until someone wants it now."""
        if self._end is not None:
            self._changed.wait(_WAIT_AT_END)
        else:
            wait = min(2.0 ** (failures - 1), _LONGEST_WAIT)
            self._changed.wait_for(
                lambda: self._end is not None or self._asked > self._served, wait
            )

    def _write_all(self, *, now: bool) -> None:
        while True:
            with self._changed:
                if self._current is None and self._pending:
                    self._current = self._pending.popleft()
                report, self._busy_since = self._current, time.monotonic()
            if report is None:
                return self._sink.sync(now=now)
            self._sink.write(*report)
            with self._changed:
                self._current = None

    def _warn_once(self, reason: str) -> None:
        if self._warnings:
            return
        line = (
            f"{self._sink.name} cannot be written: {reason}. Training goes on, and it is tried "
            "again; the end of the run counts what is missing."
        )
        # a thread of its own: the screen may be what blocks
        warning = threading.Thread(target=self._say, args=(line,), daemon=True)
        self._warnings.append(warning)
        warning.start()

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):  # nobody listens
            self._warn(line)


def close_all(writers: Sequence[Background], seconds: float, report: Callable[[str], None]) -> None:
    """Ends the threads together; reports a line for each that has not written all.

    Args:
        writers: each ends when it has written all.
        seconds: the longest time that this takes.
        report: receives the lines.
    """
    for writer in writers:
        writer.begin_to_close(seconds)
    for writer in writers:
        if line := writer.close():
            report(line)
