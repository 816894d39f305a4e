"""From the metrics of each update, on the devices, to the numbers of a report.

    step --> metrics on the devices --Meter--> means over the last `log_every` updates --> logs

Nothing leaves the devices in between.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flamingo_jax.training.background import Numbers
from flamingo_jax.training.not_finite import STOP, Check, Row
from flamingo_jax.training.unreported import Rows

RUN_AHEAD = 2  # updates that may be queued; more would only fill the device with batches
_COUNTS = ("skipped",)  # summed over the updates of a report; of all others there is a mean


class Meter:
    """Collects the metrics of updates without waiting for them, and reports their means.

    Its clock starts when it is made.
    """

    def __init__(self, check: Check = STOP, unreported: Rows = ()) -> None:
        """Starts the clock.

        Args:
            check: check(step, metrics of one update) says if these count in the means, or raises
                NonFiniteError to end the run (`training.not_finite`).
            unreported: `unreported()` of the meter of the run before.
        """
        self._check = check
        self._pending: list[tuple[int, Mapping[str, Any]]] = list(unreported)
        self._earlier = len(self._pending)  # updates that the clock does not know
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside the context: for compilation, a probe, saving."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds the metrics of an update, after which `step` updates are done.

        Waits only until at most RUN_AHEAD updates are still running.
        """
        self._pending.append((step, metrics))
        if len(self._pending) > RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - RUN_AHEAD][1])

    def unreported(self) -> list[tuple[int, Row]]:
        """Fetches the metrics of the updates since the last report, for the run that goes on.

        Raises:
            NonFiniteError: as `report`.
        """
        rows = self._fetched()
        for step, row in rows:
            self._check(step, row)
        return rows

    def report(self) -> Numbers:
        """Fetches what was collected; returns the means, and "step_seconds", the time per update.

        "skipped" is the number of updates that were skipped. They count in no mean.

        Raises:
            NonFiniteError: if a number that is not finite ends the run; names the update, its
                datasets and their records.
        """
        rows = self._fetched()
        seconds = (time.perf_counter() - self._since) / max(len(rows) - self._earlier, 1)
        good = [row for step, row in rows if self._check(step, row)]
        names = dict.fromkeys(name for row in good for name in row if name not in _COUNTS)
        means = {
            name: np.mean([row[name] for row in good if name in row], axis=0).tolist()
            for name in names
        }
        counts = {
            name: sum(float(row.get(name, 0)) for _, row in rows)
            for name in _COUNTS
            if any(name in row for _, row in rows)
        }
        self._pending, self._earlier, self._since = [], 0, time.perf_counter()
        return {**means, **counts, "step_seconds": round(seconds, 6)}

    def _fetched(self) -> list[tuple[int, Row]]:
        return [(step, _fetch(metrics)) for step, metrics in self._pending]


def _fetch(metrics: Mapping[str, Any]) -> Row:
    return {name: np.asarray(value, np.float64) for name, value in jax.device_get(metrics).items()}
