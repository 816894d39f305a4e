"""What happens when a loss, a gradient or a weight is not finite: `config.hooks.on_nonfinite`.

    "stop"   the run ends before anything is saved that depends on it
    "skip"   the update changes nothing, is counted and named, and the run goes on

    in the compiled step   accept_all     | keep_finite
    in each report         stop_at_once   | Skipped, which ends the run after some in a row
    before each save       refuse_weights | refuse_weights

A loss belongs to the weights before its update. So the losses up to a step say nothing about the
weights after it; these are looked at before they are saved.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flamingo_jax.checkpoint.arrays import few
from flamingo_jax.core import trees
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.notation import Array
from flamingo_jax.training.objective import Metrics
from flamingo_jax.training.state import TrainState

Row = dict[str, np.ndarray]  # the metrics of one update
Check = Callable[[int, Row], bool]  # (update, its metrics) -> if they count; may end the run
After = tuple[TrainState[Array], Metrics]
Accept = Callable[[TrainState[Array], TrainState[Array], Metrics], After]


def accept_all(before: TrainState[Array], after: TrainState[Array], metrics: Metrics) -> After:
    """Returns the state after an update as it is: the run stops if it is not finite."""
    del before
    return after, metrics


def keep_finite(before: TrainState[Array], after: TrainState[Array], metrics: Metrics) -> After:
    """Undoes an update of which a loss or the gradient is not finite, inside the compiled step.

    Weights and moments are then those before the update. `step` goes on, because the data follow
    it; so does the count of the learning rate's schedule, and the log shows the rate that was used.
    All devices decide alike: they have the same loss and the same norm.

    Args:
        before: the state before the update.
        after: the state after it.
        metrics: of the update.

    Returns:
        (state, metrics with "skipped", 1 or 0).
    """
    losses = [value for name, value in metrics.items() if _is_checked(name)]
    is_good = jnp.isfinite(jnp.stack(losses)).all()
    # Bits are chosen by a mask that the compiler does not know. It changes `where(good, a + b, a)`
    # to `a + where(good, b, 0)`, which rounds the sums of all good updates otherwise than a run
    # that stops.
    mask = jax.lax.optimization_barrier(-is_good.astype(jnp.int32))

    def choose(new: Array, old: Array) -> Array:
        a, b = (jax.lax.bitcast_convert_type(leaf, jnp.int32) for leaf in (new, old))
        return jax.lax.bitcast_convert_type((a & mask) | (b & ~mask), new.dtype)

    def choose_state(new: optax.OptState, old: optax.OptState) -> optax.OptState:
        return new if _is_schedule(new) else choose(new, old)

    state = dataclasses.replace(
        after,
        trainable=jax.tree.map(choose, after.trainable, before.trainable),
        opt_state=jax.tree.map(
            choose_state, after.opt_state, before.opt_state, is_leaf=_is_schedule
        ),
    )
    return state, metrics | {"skipped": 1.0 - is_good.astype(jnp.float32)}


ACCEPT: dict[str, Accept] = {"stop": accept_all, "skip": keep_finite}


def _is_checked(name: str) -> bool:
    return name in ("loss", "gradient_norm") or name.endswith("/loss")


def _is_schedule(part: object) -> bool:
    return isinstance(part, optax.ScaleByScheduleState)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the rows of an update come from.

    Attributes:
      batches: batches(update, datasets) -> {dataset: number of its batch}.
      records: records(dataset, number of a batch) -> its records, in words.
    """

    batches: Callable[[int, Sequence[str]], Mapping[str, int]] = lambda step, names: {}
    records: Callable[[str, int], str] = lambda name, number: ""

    def describe(self, step: int, names: Sequence[str]) -> str:
        """Returns sentences that name the batches of an update, and their records."""
        found = self.batches(step, names)
        return "".join(
            f"Batch {number} of {name}: {self.records(name, number)}. "
            for name, number in found.items()
        )

    def ranges(self, step: int, names: Sequence[str]) -> str:
        """Returns the batches of an update as a value of config.resume.skip_batches."""
        found = self.batches(step, names)
        return ",".join(f"{name}:{number}:{number + 1}" for name, number in found.items())


_UNKNOWN = Origin()


def stop_at_once(origin: Origin = _UNKNOWN) -> Check:
    """Returns a check of a `Meter` that ends the run at the first number that is not finite.

    Args:
        origin: of the rows of an update.
    """

    def check(step: int, row: Row) -> bool:
        if (found := _not_finite(step, row)) is None:
            return True
        names, what = found
        raise NonFiniteError(
            f"Not finite at {what}; expected finite numbers. {origin.describe(step, names)}"
            f"Nothing of this step or later was saved. {_advice(origin.ranges(step, names))}"
        )

    return check


STOP = stop_at_once()


class Skipped:
    """A check of a `Meter` that counts and names the updates that were skipped."""

    def __init__(
        self, origin: Origin, report: Callable[[str], None], *, before: int, most_in_a_row: int
    ) -> None:
        """Stores the arguments.

        Args:
            origin: of the rows of an update.
            report: receives a line about each update.
            before: updates that the run skipped before.
            most_in_a_row: so many end the run.
        """
        self._origin, self._report = origin, report
        self._total, self._most, self._in_a_row = before, most_in_a_row, 0

    def __call__(self, step: int, row: Row) -> bool:
        """Returns True if the update was done.

        Raises:
            NonFiniteError: so many updates in a row were skipped that the weights are the cause.
        """
        if (found := _not_finite(step, row)) is None:
            self._in_a_row = 0
            return True
        names, what = found
        self._total, self._in_a_row = self._total + 1, self._in_a_row + 1
        self._report(
            f"Skipped the update of {what}: not finite. {self._origin.describe(step, names)}"
            f"Weights and moments are unchanged; {self._total} updates were skipped so far."
        )
        if self._in_a_row < self._most:
            return False
        raise NonFiniteError(
            f"{self._in_a_row} updates in a row were not finite and were skipped, the last one of "
            f"{what}; expected fewer than config.hooks.max_nonfinite_in_a_row. So it is hardly the "
            f"data: {_LOWER_RATE}. {_BAD_WEIGHTS}"
        )


def _not_finite(step: int, row: Row) -> tuple[list[str], str] | None:
    """Returns (datasets, description) of an update that is not finite, else None."""
    broken = [name for name in row if _is_checked(name) and not np.isfinite(row[name]).all()]
    if not broken:
        return None
    losses = [name for name in broken if name.endswith("/loss")]
    shown = sorted({*losses, "loss", "gradient_norm"} & set(row))
    values = ", ".join(f"{name} = {row[name]}" for name in shown)
    datasets = [name.removesuffix("/loss") for name in row if name.endswith("/loss")]
    if losses:
        datasets = [name.removesuffix("/loss") for name in losses]
        return datasets, f"step {step}, dataset {', '.join(datasets)}: {values}"
    return datasets, f"step {step}, the gradient of {', '.join(datasets)}: {values}"


_LOWER_RATE = (
    "lower the learning rate (--config.optimizer.learning_rate with "
    "--config.resume.allow=optimizer.learning_rate)"
)
_BAD_WEIGHTS = (
    "If this is the first step after a restart, the newest checkpoint may have bad weights "
    "already: move it out of WORKDIR/checkpoints, and the run goes on from the one before."
)


def _advice(ranges: str) -> str:
    leave_out = f"--config.resume.skip_batches={ranges or 'DATASET:FIRST:END'}"
    return (
        "A rerun goes on from the newest checkpoint and ends here again, unless you skip such "
        f"updates (--config.hooks.on_nonfinite=skip), leave the batch out ({leave_out}) or "
        f"{_LOWER_RATE}. {_BAD_WEIGHTS}"
    )


def refuse_weights(sharding: jax.sharding.Sharding) -> Callable[[TrainState[Array]], None]:
    """Returns a check of weights and moments, on their devices, for use before they are saved.

    It is False for a weight of which the square is too large for float32: such a model computes
    nothing finite.

    Args:
        sharding: replicated, so that all processes decide alike.
    """

    @functools.partial(jax.jit, out_shardings=sharding)
    def finite(state: TrainState[Array]) -> Array:
        flat = trees.flatten(state.trainable).values()
        weights = [jnp.isfinite(jnp.square(weight).sum()) for weight in flat]
        moments = [jnp.isfinite(m).all() for m in jax.tree.leaves(state.opt_state)]
        return jnp.stack(weights + moments)

    def check(state: TrainState[Array]) -> None:
        is_finite = np.asarray(finite(dataclasses.replace(state, frozen={})))
        if is_finite.all():
            return
        names = list(trees.flatten(state.trainable))
        bad = [name for name, good in zip(names, is_finite, strict=False) if not good]
        what = f"weights ({few(bad)})" if bad else "moments of the optimizer"
        step = int(state.step)
        raise NonFiniteError(
            f"After step {step}, {int((~is_finite).sum())} of {len(is_finite)} arrays are not "
            f"finite or too large to compute with: {what}. They are not saved; the newest "
            f"checkpoint is older. A rerun goes on from there: {_LOWER_RATE}. {_BAD_WEIGHTS}"
        )

    return check
