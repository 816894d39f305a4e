"""Writes TensorBoard's event files.

TensorBoard reads the files of a directory in the order of their names, which begin with the time.
So the time in a name is always later than that of all files there, also after a clock that was
ahead was set back. On an object store a file is uploaded whole each time. There a file is uploaded
when it has grown by a quarter, and at a checkpoint; a new one is begun after some hundred
kilobytes.

After an error a new file is begun, with all reports that may be missing in the last one.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flamingo_jax.core import paths
from flamingo_jax.training.background import Numbers, curves

if TYPE_CHECKING:
    from tensorboardX.record_writer import RecordWriter

PART_BYTES = 256 << 10  # of an event file on an object store
_UPLOAD_SECONDS = 60.0  # between two uploads, unless one is asked for
_MOST_UNSAFE = 1_000  # reports that are kept for the next file
_NAME = "events.out.tfevents."


class EventFiles:
    """The event files of a run: `background.Sink`."""

    name = "TensorBoard"

    def __init__(self, directory: paths.Path, restored_step: int) -> None:
        """Opens nothing yet.

        Args:
            directory: of the event files.
            restored_step: TensorBoard hides the events of later steps that are there.
        """
        self._directory = directory
        self._hide_from: int | None = restored_step + 1
        self._is_local = paths.is_local(directory)
        self._file: RecordWriter | None = None
        self._unsafe: list[tuple[int, Numbers, float]] = []  # with the wall time
        self._stamp: int | None = None  # in the name of the last file
        self._begin = (time.time(), time.monotonic())
        self._bytes = self._bytes_before = self._bytes_uploaded = 0
        self._uploaded_at = time.monotonic()

    @property
    def num_unsafe(self) -> int:
        """Number of the last reports that are not in a file yet."""
        return len(self._unsafe)

    def write(self, step: int, numbers: Numbers) -> None:
        """Writes a curve for each number; a list is a curve for each entry, "gates/dense/0"."""
        if len(self._unsafe) >= _MOST_UNSAFE:
            self.sync(now=True)
        with self._leaving_a_bad_file():
            if self._file is None:
                self._open()
            report = (step, numbers, self._wall_time())
            self._write_report(*report)
        self._unsafe.append(report)

    def sync(self, *, now: bool) -> None:
        """Writes the buffer to the disk; uploads the file if it is time, or `now`."""
        if not self._unsafe or not (now or self._is_local or self._is_due()):
            return
        with self._leaving_a_bad_file():
            if self._file is None:
                self._open()
            assert self._file is not None
            self._file.flush()
            self._unsafe, self._hide_from = [], None
            self._bytes_uploaded, self._uploaded_at = self._bytes, time.monotonic()
            if not self._is_local and self._bytes > max(PART_BYTES, self._bytes_before // 16):
                self._release()  # the next report begins a new one

    def close(self) -> None:
        """Closes the file."""
        self._release()

    def _is_due(self) -> bool:
        grown = 4 * (self._bytes - self._bytes_uploaded) >= min(self._bytes, PART_BYTES)
        return grown and time.monotonic() - self._uploaded_at >= _UPLOAD_SECONDS

    @contextlib.contextmanager
    def _leaving_a_bad_file(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._release()
            raise

    def _release(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(Exception):  # what is not safe is written again
            if file is not None and self._is_local:
                file.close()
            elif file is not None:
                # the writers of gs:// and s3:// upload once more when they are deleted
                file._writer.flush = lambda: None

    def _open(self) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter, directory_check

        _check_package(str(self._directory))
        directory_check(str(self._directory))
        if self._stamp is None:
            self._begin_after_the_last_file()
        self._stamp = max(int(self._wall_time()), (self._stamp or 0) + 1)
        name = f"{_NAME}{self._stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._bytes_before, self._bytes = self._bytes_before + self._bytes, 0
        self._bytes_uploaded = 0
        self._file = RecordWriter(f"{self._directory}/{name}")
        wall = self._wall_time()
        self._add(Event(wall_time=wall, file_version="brain.Event:2"))
        if self._hide_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=wall, step=self._hide_from, session_log=start))
        for report in self._unsafe:  # they may be missing in the file before
            self._write_report(*report)

    def _begin_after_the_last_file(self) -> None:
        """Moves the clock of the events beyond what is there."""
        last = 0.0
        with contextlib.suppress(Exception):  # without a listing the clock alone decides
            for file in self._directory.iterdir():
                stamp = file.name.removeprefix(_NAME).partition(".")[0]
                if file.name.startswith(_NAME) and stamp.isdecimal():
                    self._stamp = max(self._stamp or 0, int(stamp))
                    last = max(last, int(stamp) + 1, file.stat().mtime)
        wall, started = self._begin
        self._begin = (max(wall, last), started)

    def _wall_time(self) -> float:
        wall, started = self._begin
        return wall + time.monotonic() - started  # never goes back, unlike time.time()

    def _write_report(self, step: int, numbers: Numbers, wall_time: float) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for curve, number in curves(numbers):
            summary = scalar(curve, number)
            self._add(Event(wall_time=wall_time, step=step, summary=summary))

    def _add(self, event: Any) -> None:
        assert self._file is not None
        data = event.SerializeToString()
        self._file.write(data)
        self._bytes += len(data) + 16  # lengths and checksums


def _check_package(directory: str) -> None:
    """Raises ImportError where tensorboardX lacks the package of an object store.

    Its own error comes with a traceback for each attempt.
    """
    from tensorboardX import record_writer

    for scheme, factory, package, is_there in (
        (
            "gs",
            record_writer.GCSRecordWriterFactory,
            "google-cloud-storage",
            record_writer.GCS_ENABLED,
        ),
        ("s3", record_writer.S3RecordWriterFactory, "boto3", record_writer.S3_ENABLED),
    ):
        is_used = isinstance(record_writer.REGISTERED_FACTORIES.get(scheme), factory)
        if directory.startswith(f"{scheme}://") and is_used and not is_there:
            raise ImportError(f"{directory} needs the package {package}: install it")
