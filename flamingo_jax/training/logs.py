"""Logs: the numbers of a run, from the devices to metrics.jsonl, TensorBoard and a progress bar.

    step --> metrics on the devices --Meter--> means over the last `log_every` updates --> logs

WORKDIR/metrics.jsonl has one JSON object per report: {"step": 200, "loss": 1.25, "pages/loss": 1.2,
"gates/attention": [0.01, ...], ...}. "step" is the number of updates done. A mean is over the
updates since the previous report.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from flamingo_jax.core import paths
from flamingo_jax.core.finite import NonFiniteError, without_non_finite

Numbers = dict[str, Any]  # float, or a list of floats with one entry per layer
Log = Callable[[int, Numbers], None]

RUN_AHEAD = 2  # updates that may be queued; more would only fill the device with batches


class Meter:
    """Collects the metrics of updates without waiting for them, and reports their means.

    Its clock starts when it is made.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []
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

    def report(self) -> Numbers:
        """Fetches what was collected; returns the means, and "step_seconds", the time per update.

        Raises:
            NonFiniteError: if a loss or gradient is not finite; names the first such update and its
                datasets.
        """
        rows = [(step, _fetch(metrics)) for step, metrics in self._pending]
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


def _fetch(metrics: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in jax.device_get(metrics).items()}


def _check_finite(step: int, row: Mapping[str, np.ndarray]) -> None:
    bad = [name for name in row if name.endswith("/loss") and not np.isfinite(row[name]).all()]
    if not bad and np.isfinite(row["loss"]).all() and np.isfinite(row["gradient_norm"]).all():
        return
    values = ", ".join(f"{name} = {row[name]}" for name in sorted({*bad, "loss", "gradient_norm"}))
    if bad:
        where = "dataset " + ", ".join(name.removesuffix("/loss") for name in bad)
    else:
        where = "the gradient of " + ", ".join(_datasets(row))
    raise NonFiniteError(
        f"Not finite at step {step}, {where}: {values}; expected finite numbers. Nothing of this "
        f"step or later was saved. Look at batch {step - 1} of that dataset, or lower "
        "config.optimizer.learning_rate; a rerun goes on from the newest checkpoint."
    )


def _datasets(row: Mapping[str, Any]) -> list[str]:
    return [name.removesuffix("/loss") for name in row if name.endswith("/loss")]


def jsonl_log(path: paths.Path, restored_step: int) -> Log:
    """Returns a log that writes one line per report to `path`; first drops lines after a step.

    The file is small and is rewritten whole each time, so that a killed run leaves no broken line,
    and `path` may be on gs://. A line that is broken all the same is dropped.

    Args:
        path: the file.
        restored_step: lines of later steps are dropped.
    """
    lines = [line for line in read_lines(path) if _step(line) <= restored_step]
    paths.write_atomically(path, "".join(line + "\n" for line in lines))

    def log(step: int, numbers: Numbers) -> None:
        plain = {
            name: without_non_finite(np.asarray(value, np.float64).tolist())
            for name, value in numbers.items()
        }
        lines.append(json.dumps({"step": step, **plain}, allow_nan=False))
        paths.write_atomically(path, "".join(line + "\n" for line in lines))

    return log


def _step(line: str) -> float:
    """Returns the step of a line; infinity if the line is no report, as after a broken disk."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")


def read_lines(path: paths.Path) -> list[str]:
    """Returns the lines of a metrics.jsonl; [] if there is no such file."""
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
                curve = name if np.ndim(value) == 0 else f"{name}/{i}"
                writer.add_scalar(curve, float(number), step)
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
            # From the time per update alone: tqdm's own estimate includes compilation and probes.
            seconds = numbers["step_seconds"]
            left = bar.format_interval((steps - step) * seconds)
            shown = f"loss {numbers['loss']:.4f}, {1e3 * seconds:.0f} ms/step, ETA {left}"
            bar.set_postfix_str(shown, refresh=False)
        else:
            scalars = {name: value for name, value in numbers.items() if np.ndim(value) == 0}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            bar.write(f"{title} step {step}: {shown}")
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
