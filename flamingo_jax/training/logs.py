"""Logs: the reports of a run, in metrics.jsonl, TensorBoard, other logs and on the screen.

    Meter --> report --all_logs--> Background --> MetricsFile   WORKDIR/metrics.jsonl
                                   Background --> EventFiles    WORKDIR/tensorboard, and others
                                                                of `training.loggers.chosen`
                                   Background --> Progress      a bar, or plain lines

WORKDIR/metrics.jsonl has one JSON object per report: {"step": 200, "loss": 1.25, "pages/loss": 1.2,
"gates/attention": [0.01, ...], ...}. "step" is the number of updates done. A mean is over the
updates since the previous report. "mfu" is there where the peak of the devices is known
(`training.utilisation`). No log stops or delays training; see `training.background`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from flamingo_jax.checkpoint.arrays import first_line
from flamingo_jax.core import paths
from flamingo_jax.core.finite import without_non_finite
from flamingo_jax.core.processes import from_first_process
from flamingo_jax.training.background import Background, Numbers, Sink, close_all
from flamingo_jax.training.progress import Progress

Log = Callable[[int, Numbers], None]
Report = Callable[[str], None]

FLUSH_SECONDS = 10.0  # that a checkpoint waits for metrics.jsonl
CLOSE_SECONDS = 20.0  # that the end of the run waits for all logs
_MOST_WAITING = 1_000  # reports that wait for TensorBoard or the screen
_UPLOAD_SECONDS = 60.0  # between two uploads of metrics.jsonl, unless one is asked for


class ReportLines(NamedTuple):
    """The lines of a metrics.jsonl.

    Attributes:
      good: (line, report), oldest first.
      damaged: lines that are no reports.
      ends: True if the last line has its end, so that the file can be appended to.
    """

    good: list[tuple[bytes, Numbers]]
    damaged: list[bytes]
    ends: bool


def read_lines(path: paths.Path) -> ReportLines:
    """Returns the lines of a metrics.jsonl; there are none if there is no such file.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    if _leads_nowhere(path):
        raise paths.PathError(f"{path} is a link to nothing")
    data = paths.regular(path).read_bytes() if path.exists() else b""
    found = ReportLines([], [], not data or data.endswith(b"\n"))
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        report = _parse(line)
        if report is None:
            found.damaged.append(line)
        else:
            found.good.append((line, report))
    return found


def _leads_nowhere(path: paths.Path) -> bool:
    """Returns True for a link to itself, or into a directory that is not there."""
    target = os.path.realpath(path)
    is_link = paths.is_local(path) and os.path.islink(path)
    return is_link and (os.path.islink(target) or not paths.Path(target).parent.is_dir())


def _parse(line: bytes) -> Numbers | None:
    """Returns the report of a line, or None if it is not one."""
    try:
        report = paths.parse_json(line.decode())
        if not isinstance(report, dict) or not all(map(_is_value, report.values())):
            return None
    except (ValueError, RecursionError):
        return None
    step = report.get("step")
    return report if isinstance(step, int) and step >= 0 and not isinstance(step, bool) else None


def number(value: object) -> float | None:
    """Returns a value of a report as a float; None for a list, None, or what no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _skipped(report: Numbers) -> int:
    """Returns how many updates a report says were skipped; 0 if that is no finite number."""
    count = number(report.get("skipped"))
    return int(count) if count is not None and math.isfinite(count) else 0


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_value, value))
    return value is None or (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # a larger int is none of a report: no float is as large
        and (isinstance(value, float) or abs(value) <= sys.float_info.max)
    )


def read(path: paths.PathLike) -> list[Numbers]:
    """Returns the reports in a metrics.jsonl, oldest first. Damaged lines are left out, counted."""
    found = read_lines(paths.Path(path))
    if found.damaged:
        logging.warning("%s: %d damaged lines are left out.", path, len(found.damaged))
    return [report for _, report in found.good]


class MetricsFile:
    """metrics.jsonl: `background.Sink`.

    On a file system a line is appended with one write. An object store does not append: there the
    file is uploaded whole at each checkpoint, at the end, and when it has grown by a sixteenth.

    Attributes:
      logged: the numbers that the file has for the restored step.
      skipped: updates that were skipped up to there.
    """

    def __init__(self, path: paths.Path, restored_step: int, report: Report) -> None:
        """Prepares the file: drops the lines of later steps, and damaged ones.

        Damaged lines are appended to metrics.jsonl.damaged. A file that cannot be read is moved
        there. So no damage ends a run.

        Args:
            path: the file.
            restored_step: lines of later steps are dropped: the run computes them again.
            report: receives a line about what was damaged.
        """
        self.name = path.name
        self._path, self._report = path, report
        self._is_local = paths.is_local(path)
        found = self._found()
        kept = [(line, row) for line, row in found.good if row["step"] <= restored_step]
        self.logged: Numbers = {}
        for _, row in kept:
            self.logged |= row if row["step"] == restored_step else {}
        self.skipped = sum(_skipped(row) for _, row in kept)
        lines = [line for line, _ in kept]
        if found.damaged and not self._set_aside(found.damaged):
            lines += found.damaged
        whole = b"".join(line + b"\n" for line in lines)
        # What is to be written in place of the file, if it has to change
        is_same = found.ends and len(lines) == len(found.good) + len(found.damaged)
        self._whole: bytes | None = None if is_same else whole
        self._content = bytearray() if self._is_local else bytearray(whole)
        self._rest = b""  # of a line that a full disk cut off
        self._unsafe = 0
        self._uploaded, self._uploaded_at = len(self._content), time.monotonic()
        with contextlib.suppress(OSError):  # the thread tries again
            self._rewrite()

    @property
    def num_unsafe(self) -> int:
        """Number of the last reports that are not on the disk, or not uploaded, yet."""
        return self._unsafe

    def write(self, step: int, numbers: Numbers) -> None:
        """Appends a report as one line."""
        plain = {name: without_non_finite(value) for name, value in numbers.items()}
        line = json.dumps({"step": step, **plain}, allow_nan=False).encode() + b"\n"
        if self._is_local:
            self._rewrite()
            self._rest = self._rest or line
            while self._rest:
                self._rest = paths.append(self._path, self._rest)
        else:
            self._content += line
        self._unsafe += 1

    def sync(self, *, now: bool) -> None:
        """Puts what was written on the disk, if `now`; uploads it if it is time, or `now`."""
        if self._is_local:
            self._rewrite()
            if now and self._unsafe:
                paths.flush(self._path)
                self._unsafe = 0
        elif self._whole is not None or (self._unsafe and (now or self._is_due())):
            self._path.write_bytes(bytes(self._content))
            self._uploaded, self._uploaded_at = len(self._content), time.monotonic()
            self._whole, self._unsafe = None, 0

    def close(self) -> None:
        """Does nothing: the file is open only while a line is written."""

    def _is_due(self) -> bool:
        grown = 16 * (len(self._content) - self._uploaded) >= len(self._content)
        return grown and time.monotonic() - self._uploaded_at >= _UPLOAD_SECONDS

    def _rewrite(self) -> None:
        if self._whole is not None:
            paths.write_atomically(self._path, self._whole)
            self._whole = None

    def _found(self) -> ReportLines:
        try:
            return read_lines(self._path)
        except Exception as error:  # noqa: BLE001 - the libraries of clouds have their own errors
            reason = first_line(error)
        aside = self._path.parent / f"{self._path.name}.unreadable-{int(time.time())}"
        try:
            self._path.rename(aside)
            what = f"it is now {aside.name}, and a new one begins"
        except Exception as error:  # noqa: BLE001
            what = f"and it cannot be moved away ({first_line(error)})"
        self._report(f"{self._path} cannot be read ({reason}): {what}.")
        return ReportLines([], [], ends=True)

    def _set_aside(self, lines: Sequence[bytes]) -> bool:
        """Adds damaged lines to the file beside; returns False if that is not possible."""
        aside = self._path.parent / f"{self._path.name}.damaged"
        data = b"".join(line + b"\n" for line in lines)
        try:
            if self._is_local:
                while data:
                    data = paths.append(aside, data)
            else:
                aside.write_bytes(
                    (paths.regular(aside).read_bytes() if aside.exists() else b"") + data
                )
        except Exception as error:  # noqa: BLE001
            self._report(
                f"{self._path} has {len(lines)} damaged lines. They stay there, because {aside} "
                f"cannot be written ({first_line(error)}). All other lines are good."
            )
            return False
        self._report(
            f"{self._path} had {len(lines)} damaged lines, as after a crash. They are now in "
            f"{aside.name}. All other lines are kept."
        )
        return True


class Logs:
    """The logs of a run as one function; only the first process has any.

    Attributes:
      logged: the numbers that are in metrics.jsonl for the restored step, in all processes.
      skipped: updates that were skipped up to there.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        report: Report,
        *,
        logged: Numbers | None = None,
        skipped: int = 0,
    ) -> None:
        """Starts a thread for each sink.

        Args:
            sinks: the first one is metrics.jsonl, of which no report is dropped.
            report: receives warnings.
            logged: see above.
            skipped: see above.
        """
        self.logged, self.skipped = dict(logged or {}), skipped
        limits = [None, *[_MOST_WAITING] * len(sinks)]
        self._writers = [
            Background(sink, report, most=most) for sink, most in zip(sinks, limits, strict=False)
        ]
        self._report = report

    def __call__(self, step: int, numbers: Numbers) -> None:
        """Hands a report to all logs; never waits for one."""
        plain = {name: np.asarray(value, np.float64).tolist() for name, value in numbers.items()}
        for writer in self._writers:
            writer.put(step, plain)

    def flush(self) -> None:
        """Waits until metrics.jsonl is on the disk, for FLUSH_SECONDS at most."""
        for i, writer in enumerate(self._writers):
            writer.flush(0.0 if i else FLUSH_SECONDS)

    def close(self) -> None:
        """Waits for all logs, for CLOSE_SECONDS at most; reports what was not written."""
        close_all(self._writers, CLOSE_SECONDS, self._report)


@contextlib.contextmanager
def all_logs(
    workdir: paths.Path,
    restored_step: int,
    *,
    steps: int,
    title: str,
    others: Callable[[], Sequence[Sink]],
    progress: bool,
    report: Report,
) -> Iterator[Logs]:
    """The logs of a run, until the context ends; all processes enter it together.

    Args:
        workdir: of the run.
        restored_step: updates done before; later reports of an earlier attempt are dropped.
        steps: updates of the run.
        title: of the progress bar.
        others: makes the logs besides metrics.jsonl; called in the first process.
        progress: True to show progress on the screen.
        report: receives lines for people.
    """
    sinks: list[Sink] = []
    summary: dict[str, Any] = {"logged": {}, "skipped": 0}
    if jax.process_index() == 0:
        file = MetricsFile(workdir / "metrics.jsonl", restored_step, report)
        sinks.append(file)
        summary = {"logged": without_non_finite(file.logged), "skipped": file.skipped}
        sinks += others()
        if progress:
            sinks.append(Progress(steps, restored_step, title))
    known = json.loads(from_first_process(json.dumps(summary, allow_nan=False)))
    logged = {name: math.nan if value is None else value for name, value in known["logged"].items()}
    logs = Logs(sinks, report, logged=logged, skipped=known["skipped"])
    with contextlib.closing(logs):
        yield logs
