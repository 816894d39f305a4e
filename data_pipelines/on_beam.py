"""Runs a graph of Apache Beam: on the cores of this machine by default, or on any Beam runner."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import tqdm
from etils import epath

from data_pipelines.watchdog import watched


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a pipeline is run. Of these only validation_share changes the output.

    On Linux, a worker of the DirectRunner that dies or is stuck ends the run with an error that
    names what it was reading.

    Attributes:
      num_workers: processes of the DirectRunner; 0: one for each core.
      runner: any runner of Apache Beam.
      beam_options: further options of Beam, as "name=value".
      max_broken: largest share of damaged records; a larger share ends the run with an error.
      validation_share: share of the records that go to the split "validation", chosen by a hash of
        their first key.
      stuck_seconds: CPU time without a record after which a worker counts as stuck; 0: no limit.
    """

    num_workers: int = 0
    runner: str = "DirectRunner"
    beam_options: tuple[str, ...] = ()
    max_broken: float = 0.1
    validation_share: float = 0.0
    stuck_seconds: float = 1800.0

    def __post_init__(self) -> None:
        for name in ("max_broken", "validation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name}={getattr(self, name)}: expected a share, 0 to 1.")
        if not self.stuck_seconds >= 0:
            raise ValueError(
                f"--stuck_seconds={self.stuck_seconds}: expected seconds, or 0 for no limit."
            )
        if self.num_workers < 0:
            raise ValueError(
                f"--num_workers={self.num_workers}: expected 1 or more, or 0 for one on each core."
            )


def run(
    graph: Callable[[Any], None], how: Execution, *, num_units: int, count_done: Callable[[], int]
) -> None:
    """Builds a pipeline and runs it to its end.

    Args:
      graph: adds the steps to an empty `beam.Pipeline`.
      how: runner and workers.
      num_units: number of units to read, for the progress bar.
      count_done: returns how many units are done; called once a second if standard error is a
        terminal.
    """
    with _quiet():  # importing Beam warns about cloud libraries that are not installed
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

    options = [f"--{option.removeprefix('--')}" for option in how.beam_options]
    processes = False
    if how.runner == "DirectRunner":
        workers = min(how.num_workers or os.cpu_count() or 1, max(num_units, 1))
        processes = workers > 1
        mode = "multi_processing" if processes else "in_memory"
        options += [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(_silent_children()) if processes else sys.stderr
        stack.enter_context(_quiet())
        stack.enter_context(_progress(num_units, count_done, terminal))
        if processes:
            stack.enter_context(watched())
        chosen = PipelineOptions([*options, f"--runner={how.runner}"])
        with beam.Pipeline(options=chosen) as pipeline:
            graph(pipeline)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops log messages below errors: Beam logs every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _silent_children() -> Iterator[TextIO]:
    """Redirects the output of worker processes, which log their start and end, to the null device.

    Yields the real standard error. An exception in a worker still reaches the launcher, as an
    exception of the pipeline.
    """
    real = os.dup(2)
    with os.fdopen(real, "w") as terminal:
        with epath.Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(real, 2)


@contextlib.contextmanager
def _progress(total: int, count_done: Callable[[], int], stream: TextIO) -> Iterator[None]:
    if not stream.isatty():
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        with tqdm.tqdm(total=total, unit="file", file=stream, dynamic_ncols=True) as bar:
            while not ended.wait(1.0):
                bar.update(count_done() - bar.n)
            bar.update(count_done() - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
