"""The training loop: updates, reports and hooks.

It knows no model, no dataset and no file: these are functions that it gets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from flamingo_jax.core.notation import Array
from flamingo_jax.training.callbacks import Hook, Moment, Stop
from flamingo_jax.training.logs import Log
from flamingo_jax.training.meter import Meter
from flamingo_jax.training.not_finite import STOP, Check
from flamingo_jax.training.state import TrainState
from flamingo_jax.training.step import Step


class Ended(NamedTuple):
    """How a loop ended.

    Attributes:
      state: after the last update.
      step: updates done.
      stopped: True if `stop` ended the loop.
    """

    state: TrainState[Array]
    step: int
    stopped: bool


def run(
    step: Step,
    state: TrainState[Array],
    batches: Iterator[Mapping[str, Any]],
    rng: jax.Array,
    *,
    start: int,
    steps: int,
    log_every: int,
    log: Log,
    hooks: Sequence[Hook] = (),
    at_start: Sequence[Hook] = (),
    check: Check = STOP,
    stop: Stop | None = None,
) -> Ended:
    """Updates the state until `steps` updates are done, or until `stop` returns True.

    Args:
        step: one update; it reuses the buffers of the state it gets.
        state: after `start` updates.
        batches: {dataset: batch} for update start, start + 1, ...; on the devices.
        rng: key of the run.
        start: updates done before.
        steps: updates in all.
        log_every: updates between two reports; nothing is fetched from the devices in between.
        log: receives each report.
        hooks: called after each update, after its report.
        at_start: called before the first update.
        check: decides what happens to an update that is not finite (`training.not_finite`).
        stop: called before the first update and after each.

    Raises:
        NonFiniteError: if a loss or gradient is not finite; raised before any hook gets a state
            that depends on it.
    """
    stopped = bool(stop and stop(Moment(start, state, is_last=start >= steps)))
    for hook in at_start:
        hook(Moment(start, state, is_last=stopped or start >= steps))
    done, meter = start, Meter(check)
    while done < steps and not stopped:
        batch = next(batches)
        # the first call compiles
        with meter.paused() if done == start else contextlib.nullcontext():
            state, metrics = step(state, batch, rng)
        done += 1
        meter.add(done, metrics)
        if reported := done % log_every == 0 or done == steps:
            log(done, meter.report())
        with meter.paused():
            stopped = bool(stop and stop(Moment(done, state, is_last=done == steps)))
        if stopped and not reported:
            log(done, meter.report())
        with meter.paused():
            for hook in hooks:
                hook(Moment(done, state, is_last=stopped or done == steps))
    return Ended(state, done, stopped)
