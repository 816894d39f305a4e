"""Numbers of a run: gathered on the devices, fetched now and then, written where people look.

    step --> metrics on the device --Meter--> means of the last `log_every` updates --> metrics.jsonl, TensorBoard, progress bar

WORKDIR/metrics.jsonl has one JSON object per report: {"step": 200, "loss": 1.25, "pages/loss": 1.2,
"gates/attention": [0.01, ...], ...}. "step" is the number of updates done; a mean belongs to the
updates since the report before.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from flamingo_jax.core import paths

Numbers = dict[str, Any]  # float, or a list of floats with one entry per layer
Log = Callable[[int, Numbers], None]

RUN_AHEAD = 2  # updates; more would only pile up batches on the device


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is infinite or not a number; the state since then was not saved."""


class Meter:
    """Collects the metrics of updates without waiting for them, and reports their means."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside (compilation, a probe, saving) out of the time per update."""
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Notes the metrics of the update that made `step` updates done.

        Waits for the one before the last only.
        """
        self._pending.append((step, metrics))
        if len(self._pending) > RUN_AHEAD:
            jax.block_until_ready(self._pending[-1 - RUN_AHEAD][1])

    def report(self) -> Numbers:
        """Fetches what was collected and returns the means, with "step_seconds".

        Raises:
            NonFiniteError: naming the first update, and its datasets, with a loss or gradient that
                is not finite.
        """
        rows = [
            (
                step,
                {
                    name: np.asarray(value, np.float64)
                    for name, value in jax.device_get(metrics).items()
                },
            )
            for step, metrics in self._pending
        ]
        seconds = (time.perf_counter() - self._since) / max(len(rows), 1)
        for step, row in rows:
            _check_finite(step, row)
        names = dict.fromkeys(name for _, row in rows for name in row)
        means = {
            name: np.mean([row[name] for _, row in rows if name in row], axis=0).tolist()
            for name in names
        }
        self._pending, self._since = [], time.perf_counter()
        return {**means, "step_seconds": round(seconds, 6)}


def _check_finite(step: int, row: Mapping[str, np.ndarray]) -> None:
    bad = [name for name in row if name.endswith("/loss") and not np.isfinite(row[name]).all()]
    if not bad and np.isfinite(row["loss"]).all() and np.isfinite(row["gradient_norm"]).all():
        return
    values = ", ".join(f"{name} = {row[name]}" for name in sorted({*bad, "loss", "gradient_norm"}))
    where = (
        f"dataset {', '.join(name.removesuffix('/loss') for name in bad)}"
        if bad
        else "the gradient of " + ", ".join(_datasets(row))
    )
    raise NonFiniteError(
        f"Not finite at step {step}, {where}: {values}; expected finite numbers. Nothing of this "
        f"step or later was saved. Look at batch {step - 1} of that dataset, or lower "
        "config.optimizer.learning_rate; a rerun goes on from the newest checkpoint."
    )


def _datasets(row: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix("/loss") for name in row if name.endswith("/loss")]


def jsonl_log(path: paths.Path, restored_step: int) -> Log:
    """Returns a log that keeps `path` up to date, one line per report.

    Lines beyond `restored_step` are dropped first.

    The file is small (one line per report) and is rewritten whole, so that it is never cut off and
    may lie on gs://.
    """
    lines = [line for line in read_lines(path) if json.loads(line)["step"] <= restored_step]
    paths.write_atomically(path, "".join(line + "\n" for line in lines))

    def log(step: int, numbers: Numbers) -> None:
        lines.append(
            json.dumps({"step": step, **{name: _plain(value) for name, value in numbers.items()}})
        )
        paths.write_atomically(path, "".join(line + "\n" for line in lines))

    return log


def read_lines(path: paths.Path) -> list[str]:
    """Returns the lines of a metrics.jsonl; none if there is no such file."""
    return path.read_text().splitlines() if path.exists() else []


def read(path: paths.PathLike) -> list[Numbers]:
    """Returns the reports in a metrics.jsonl, oldest first."""
    return [json.loads(line) for line in read_lines(paths.Path(path))]


@contextlib.contextmanager
def tensorboard_log(directory: paths.Path, restored_step: int) -> Iterator[Log]:
    """A log that writes TensorBoard events; it hides events after `restored_step`."""
    import tensorboardX

    writer = tensorboardX.SummaryWriter(str(directory), purge_step=restored_step + 1)

    def log(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            for i, number in enumerate(np.ravel(value)):
                writer.add_scalar(
                    name if np.ndim(value) == 0 else f"{name}/{i}", float(number), step
                )
        writer.flush()

    with contextlib.closing(writer):
        yield log


@contextlib.contextmanager
def progress_log(steps: int, restored_step: int, title: str) -> Iterator[Log]:
    """A log that moves a progress bar with loss, time per update and ETA."""
    bar = tqdm.tqdm(
        total=steps,
        initial=restored_step,
        desc=title,
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        mininterval=0.5 if sys.stderr.isatty() else 20.0,  # a log file gets a line now and then
        dynamic_ncols=True,
    )

    def log(step: int, numbers: Numbers) -> None:
        if "loss" in numbers:
            # By the step time alone: tqdm's own estimate would count compilation and probes in.
            left = bar.format_interval((steps - step) * numbers["step_seconds"])
            bar.set_postfix_str(
                f"loss {numbers['loss']:.4f}, {1e3 * numbers['step_seconds']:.0f} ms/step, ETA "
                f"{left}",
                refresh=False,
            )
        else:
            bar.write(
                f"{title} step {step}: "
                + ", ".join(
                    f"{name} {value:.4g}" for name, value in numbers.items() if np.ndim(value) == 0
                )
            )
        bar.update(step - bar.n)

    with contextlib.closing(bar):
        yield log


@contextlib.contextmanager
def all_logs(
    workdir: paths.Path,
    restored_step: int,
    *,
    steps: int,
    title: str,
    tensorboard: bool,
    progress: bool,
) -> Iterator[Log]:
    """One log that writes all of a run's logs; only the first process writes.

    Args:
        workdir: of the run.
        restored_step: updates done before; later reports of an earlier attempt are dropped.
        steps: updates of the run.
        title: of the progress bar.
        tensorboard: True to write TensorBoard events too.
        progress: True to draw a progress bar.
    """
    with contextlib.ExitStack() as stack:
        logs: list[Log] = []
        if jax.process_index() == 0:
            logs.append(jsonl_log(workdir / "metrics.jsonl", restored_step))
            if tensorboard:
                opened = tensorboard_log(workdir / "tensorboard", restored_step)
                logs.append(stack.enter_context(opened))
            if progress:
                logs.append(stack.enter_context(progress_log(steps, restored_step, title)))

        def log(step: int, numbers: Numbers) -> None:
            for one in logs:
                one(step, numbers)

        yield log


def _plain(value: Any) -> Any:
    """Returns a number as JSON can hold it: no NaN, which JSON lacks."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return float(value) if math.isfinite(value) else None
