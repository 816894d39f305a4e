"""The training loop: updates, reports and hooks.

It knows no model, no dataset and no file: these are functions that it gets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from flamingo_jax.core.notation import Array
from flamingo_jax.core.phases import Phase
from flamingo_jax.core.preemption import GivenUp
from flamingo_jax.training.callbacks import Hook, Moment, Stop
from flamingo_jax.training.logs import Log
from flamingo_jax.training.meter import Meter
from flamingo_jax.training.not_finite import STOP, Check
from flamingo_jax.training.state import TrainState
from flamingo_jax.training.step import Step
from flamingo_jax.training.unreported import Rows


class Ended(NamedTuple):
    """How a loop ended.

    Attributes:
      state: after the last update.
      step: updates done.
      stopped: True if `stop` ended the loop.
      asked: True if `should_end` ended the loop; then no hook was called after the last update, and
          the state is not saved.
      unreported: metrics of the updates after the last report, for the run that goes on.
    """

    state: TrainState[Array]
    step: int
    stopped: bool
    asked: bool = False
    unreported: Rows = ()


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
    should_end: Callable[[], bool] = lambda: False,
    unreported: Rows = (),
    at: Callable[[Phase, int], None] = lambda phase, step: None,
) -> Ended:
    """Updates the state until `steps` updates are done, or `stop` or `should_end` returns True.

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
        should_end: called after each update; True ends the loop at once, without hooks. The caller
            saves the state. A hook or `stop` may raise GivenUp instead, and is called again for the
            same step in the run that goes on.
        unreported: what the run before returned in `Ended.unreported`, so that the next report is
            the same as if it had not ended.
        at: receives what the loop does, and the number of updates done.

    Raises:
        NonFiniteError: if a loss or gradient is not finite; raised before any hook gets a state
            that depends on it.
    """
    done, meter, compiled = start, Meter(check, unreported), set[Any]()
    at(Phase.MEASURING, start)
    try:
        stopped = bool(stop and stop(Moment(start, state, is_last=start >= steps)))
        for hook in at_start:
            hook(Moment(start, state, is_last=stopped or start >= steps))
    except GivenUp:
        return Ended(state, done, stopped=False, asked=True, unreported=unreported)
    while done < steps and not stopped:
        at(Phase.READING, done)
        batch = next(batches)
        at(Phase.UPDATING, done)
        # The first call for batches of some shapes compiles; with round_robin each dataset has one.
        shapes = _shapes(batch)
        with contextlib.nullcontext() if shapes in compiled else meter.paused():
            state, metrics = step(state, batch, rng)
        compiled.add(shapes)
        done += 1
        meter.add(done, metrics)
        if reported := done % log_every == 0 or done == steps:
            log(done, meter.report())
        if should_end():
            return Ended(state, done, stopped=False, asked=True, unreported=meter.unreported())
        at(Phase.MEASURING, done)
        try:
            with meter.paused():
                stopped = bool(stop and stop(Moment(done, state, is_last=done == steps)))
            if stopped and not reported:
                log(done, meter.report())
            with meter.paused():
                for hook in hooks:
                    hook(Moment(done, state, is_last=stopped or done == steps))
        except GivenUp:
            return Ended(state, done, stopped=False, asked=True, unreported=meter.unreported())
    return Ended(state, done, stopped)


def _shapes(batch: Mapping[str, Any]) -> Any:
    """Returns what decides whether a step that is compiled for a batch can take another one."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple(leaf.shape for leaf in leaves)
