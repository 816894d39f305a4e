"""Callbacks: functions that the training loop calls after each update.

The loop does not know what they do.

    hook(Moment(step, state, is_last))   saves, evaluates, ...; wrapped in `every(n, ...)`
    stop(Moment) -> bool                 ends the language_model stage when its probe is good enough
    log(step, numbers)                   metrics.jsonl, TensorBoard, progress bar (`training.logs`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.notation import Array
from flamingo_jax.data.rejected import describe_reasons
from flamingo_jax.training.logs import Log, number
from flamingo_jax.training.state import TrainState
from flamingo_jax.training.unreported import Rows, to_json


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point between two updates.

    Attributes:
      step: the updates done.
      state: after these updates. The next update reuses its buffers, so a hook must copy whatever
          it keeps.
      is_last: True if no update follows.
      unreported: metrics of the last updates, if the run ends before their report.
    """

    step: int
    state: TrainState[Array]
    is_last: bool = False
    unreported: Rows = ()


Hook = Callable[[Moment], None]
Stop = Callable[[Moment], bool]
Measure = Callable[[Any], Mapping[str, float]]  # weights -> numbers

EVALUATION, _PROBE = "evaluate/", "until/"  # begin the names of what is measured


class ProbeNotReached(RuntimeError):
    """All steps of the stage are done, and its probe is still not below the bound."""


def every(steps: int, hook: Hook, *, at_end: bool) -> Hook:
    """Returns a hook that calls `hook` after every `steps` updates.

    Args:
        steps: number of updates between two calls; 0 is never.
        hook: the hook to call.
        at_end: True to call it after the last update too.
    """

    def scheduled(moment: Moment) -> None:
        if (steps and moment.step % steps == 0) or (at_end and moment.is_last):
            hook(moment)

    return scheduled


def save(
    store: Any,
    positions: Callable[[int], dict[str, int]],
    *,
    check: Callable[[TrainState[Array]], None] = lambda state: None,
    flush: Callable[[], None] = lambda: None,
) -> Hook:
    """Returns a hook that saves a checkpoint, in the background.

    Args:
        store: a `checkpoint.store.Store`.
        positions: positions(step) -> {dataset: batches used by the first `step` updates}.
        check: raises an error for a state that must not be saved.
        flush: writes the reports up to this step.
    """

    def hook(moment: Moment) -> None:
        check(moment.state)
        flush()
        rows = to_json(moment.unreported)
        store.save(moment.step, moment.state.saved(), positions(moment.step), unreported=rows)

    return hook


def measure(function: Measure, log: Log, report: Callable[[str], None]) -> Hook:
    """Returns a hook that logs what `function` measures of the weights, such as few-shot tasks.

    Args:
        function: measures the weights; its numbers are named "evaluate/...".
        log: receives the numbers; "evaluate/not_finite" counts measurements without numbers.
        report: receives a line about each of these.
    """
    attempt = _attempt(function, f"{EVALUATION}not_finite", report)

    def hook(moment: Moment) -> None:
        log(moment.step, attempt(moment))

    return hook


def _attempt(
    function: Measure, count: str, report: Callable[[str], None]
) -> Callable[[Moment], dict[str, float]]:
    """Measures the weights; where that meets NaN, there is a line and a count, and no error.

    The run goes on: the loop itself ends a run of which a loss or a gradient is NaN.
    """
    failed = 0

    def attempt(moment: Moment) -> dict[str, float]:
        nonlocal failed
        try:
            return dict(function(moment.state.params()))
        except NonFiniteError as error:
            failed += 1
            report(f"Nothing was measured at step {moment.step}, training goes on: {error}")
            return {count: float(failed)}

    return attempt


def report_rejected(
    rejected: Callable[[], dict[str, dict[str, int]]], report: Callable[[str], None]
) -> Hook:
    """Says in one line how many records were skipped so far, if there are more than last time.

    Args:
        rejected: returns {dataset: {reason: records skipped so far}}.
        report: receives the line.
    """
    reported: dict[str, dict[str, int]] = {}

    def hook(moment: Moment) -> None:
        nonlocal reported
        if (now := rejected()) != reported:
            reported = now
            counts = "; ".join(
                f"{name}: {describe_reasons(reasons)}" for name, reasons in now.items()
            )
            report(f"Corrupt records, skipped up to step {moment.step}: {counts}.")

    return hook


def below(
    function: Measure,
    log: Log,
    report: Callable[[str], None],
    *,
    metric: str,
    bound: float,
    steps: int,
    logged: Mapping[str, Any] | None = None,
) -> Stop:
    """Returns a stop that ends the loop when a metric is below a bound.

    At the restored step it measures only what metrics.jsonl does not have.

    Args:
        function: measures the weights.
        log: receives all numbers that are measured, as "until/NAME"; "until/not_finite" counts
            measurements without numbers.
        report: receives a line about each of these.
        metric: the number that is compared.
        bound: its bound.
        steps: updates between two measurements.
        logged: the numbers in metrics.jsonl of the step at which `stop` is called first.
    """
    attempt = _attempt(function, "not_finite", report)
    known: dict[str, float] = {}
    for name, value in (logged or {}).items():
        if name.startswith(_PROBE) and (plain := number(value)) is not None:
            known[name.removeprefix(_PROBE)] = plain
        elif name.startswith(_PROBE):
            report(f"{name} in metrics.jsonl is {value!r:.40}, no number: it is measured again.")

    def stop(moment: Moment) -> bool:
        found = dict(known)
        known.clear()  # they are of the first step
        if moment.step == 0 or not (moment.step % steps == 0 or moment.is_last):
            return False
        if "not_finite" in found or metric in found:
            return metric in found and found[metric] < bound
        numbers = attempt(moment)
        measured = "not_finite" not in numbers
        if measured and metric not in numbers:
            raise ConfigError(
                f"config.until.metric is {metric!r}; the probe measures {sorted(numbers)}. Name "
                "one of these."
            )
        log(moment.step, {f"{_PROBE}{name}": value for name, value in numbers.items()})
        return measured and numbers[metric] < bound

    return stop
