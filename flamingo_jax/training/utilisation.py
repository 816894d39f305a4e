"""Model FLOPs utilisation (MFU): the share of the devices' peak that a run uses, in its reports.

    step --counts of its batches, on the devices--> Utilisation --FLOPs, peak--> report with "mfu"

Only the real content of the batches counts, without padding and recomputation. What the content of
a batch needs and what the devices can do is not known here: both are given (`planning.peaks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.core.notation import Array
from flamingo_jax.sharding.mesh import replicated
from flamingo_jax.training.background import Numbers
from flamingo_jax.training.logs import Log
from flamingo_jax.training.objective import Metrics
from flamingo_jax.training.state import TrainState
from flamingo_jax.training.step import Step


class BatchContent(NamedTuple):
    """What a batch has, without padding.

    Attributes:
      rows: of the batch, over all devices.
      tokens: of all rows.
      images: visual inputs of all rows.
      frames: of all visual inputs.
    """

    rows: int
    tokens: int
    images: int
    frames: int


Needed = Callable[[Mapping[str, BatchContent]], float]


class Utilisation:
    """Counts what the updates of a run need, and adds "mfu" to its reports."""

    def __init__(self, needed: Needed, peak: float, mesh: Mesh) -> None:
        """Stores the arguments.

        Args:
            needed: needed({dataset: content}) -> model FLOPs of the update.
            peak: FLOP per second of all devices of the run.
            mesh: the devices. Each of them gets the counts, so that each process can read them.
        """
        self._needed, self._peak = needed, peak
        self._count = jax.jit(_count, out_shardings=replicated(mesh))
        self._counts: list[dict[str, tuple[int, jax.Array]]] = []  # since the last report

    def counted(self, step: Step) -> Step:
        """Returns the step that also counts its batches. It does not wait for the devices."""

        def call(
            state: TrainState[Array], batches: Mapping[str, Any], rng: jax.Array
        ) -> tuple[TrainState[Array], Metrics]:
            parts = {name: (batch.segment, batch.frame_mask) for name, batch in batches.items()}
            counts = self._count(parts)
            rows = {name: batch.segment.shape[0] for name, batch in batches.items()}
            self._counts.append({name: (rows[name], counts[name]) for name in batches})
            return step(state, batches, rng)

        return call

    def added(self, log: Log) -> Log:
        """Returns the log that gets "mfu" with the time per update: of the same updates."""

        def write(step: int, numbers: Numbers) -> None:
            if seconds := numbers.get("step_seconds"):
                numbers = {**numbers, "mfu": round(self._flops() / seconds / self._peak, 4)}
            log(step, numbers)

        return write

    def _flops(self) -> float:
        """Returns the mean FLOPs of the updates since the last report."""
        counted, self._counts = jax.device_get(self._counts), []
        flops = [
            self._needed(
                {name: BatchContent(rows, *map(int, n)) for name, (rows, n) in update.items()}
            )
            for update in counted
        ]
        return float(np.mean(flops)) if flops else 0.0


def _count(parts: dict[str, tuple[jax.Array, jax.Array | None]]) -> dict[str, jax.Array]:
    """Returns {dataset: int32[3] tokens, images, frames} of {dataset: (segment, frame_mask)}."""

    def of_batch(segment: jax.Array, mask: jax.Array | None) -> jax.Array:
        if mask is None:
            mask = jnp.zeros((0, 1), jnp.bool_)
        real = mask != 0  # of tiles it has numbers
        return jnp.stack([jnp.sum(segment > 0), jnp.sum(jnp.any(real, axis=1)), jnp.sum(real)])

    return {name: of_batch(*part) for name, part in parts.items()}
