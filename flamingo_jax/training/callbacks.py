"""What happens between updates, as functions.

The loop calls each after each update and knows nothing of what they do.

hook(Moment(step, state, is_last))      save, evaluate, ...: wrapped in `every(n, ...)`
stop(Moment) -> bool                    the look-up probe, which ends the language_model stage when it is good enough
log(step, numbers)                      metrics.jsonl, TensorBoard, progress bar: see metrics.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flamingo_jax.core.notation import Array
from flamingo_jax.data.rejected import describe_reasons
from flamingo_jax.training.logs import Log
from flamingo_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point between two updates: `step` updates are done, `state` is what they made; `is_last`.

    None follows.

    The buffers of `state` are given to the next update: a hook that keeps anything copies it.
    """

    step: int
    state: TrainState[Array]
    is_last: bool = False


Hook = Callable[[Moment], None]
Stop = Callable[[Moment], bool]
Measure = Callable[[Any], Mapping[str, float]]  # weights -> numbers


class ProbeNotReached(RuntimeError):
    """The stage has used all its steps and its probe is still not below the bound."""


def every(steps: int, hook: Hook, *, at_end: bool) -> Hook:
    """Calls `hook` after each `steps` updates (0: never), and after the last one if `at_end`."""

    def scheduled(moment: Moment) -> None:
        if (steps and moment.step % steps == 0) or (at_end and moment.is_last):
            hook(moment)

    return scheduled


def save(store: Any, positions: Callable[[int], dict[str, int]]) -> Hook:
    """Hands the state and the data positions to a checkpoint store; it writes in the background."""

    def hook(moment: Moment) -> None:
        store.save(moment.step, moment.state.saved(), positions(moment.step))

    return hook


def measure(function: Measure, log: Log) -> Hook:
    """Logs what `function` measures of the weights: the few-shot tasks, for one."""

    def hook(moment: Moment) -> None:
        log(moment.step, dict(function(moment.state.params())))

    return hook


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


def below(function: Measure, log: Log, *, metric: str, bound: float, steps: int) -> Stop:
    """Returns a test, made after each `steps` updates, of whether `function`'s `metric` has come below `bound`."""

    def stop(moment: Moment) -> bool:
        if moment.step == 0 or not (moment.step % steps == 0 or moment.is_last):
            return False
        numbers = dict(function(moment.state.params()))
        if metric not in numbers:
            raise ValueError(
                f"config.until.metric is {metric!r}; the probe measures {sorted(numbers)}. Name "
                "one of these."
            )
        log(moment.step, {f"until/{name}": value for name, value in numbers.items()})
        return bool(numbers[metric] < bound)

    return stop
