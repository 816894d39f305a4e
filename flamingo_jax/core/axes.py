"""Logical axes -> mesh axes: the whole sharding layout on one screen.

Weights are sharded over "model" as Megatron does it (paper, B.1.2).

A weight says what its dimensions are ("embed", "heads"); this table alone says where they go. QKV
and up projections are split by columns (heads, mlp), out and down projections by rows, the
vocabulary by rows of the table.

Models name the axes of their activations in the same words, with `constrain`; that does nothing
until a program sets a `AxisLayout` around the trace (`with_layout`), so that no model knows of a
mesh.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from jax import Array
from jax.sharding import PartitionSpec

MeshAxes = str | tuple[str, ...] | None

RULES: Mapping[str, MeshAxes] = {
    # activations
    "batch": ("replica", "data"),
    "length": None,
    # The residual stream between blocks: tokens are split over model too (sequence parallelism,
    # Korthikanti et al. 2022), by
    # rows where there are enough of them, since a split of the first dimension moves whole blocks
    # of memory; else by length.
    "rows": ("replica", "data", "model"),
    "sequence": "model",
    "media": ("replica", "data"),
    "images": ("replica", "data", "model"),  # no chip encodes an image twice
    "frames": None,
    "pairs": (
        "replica",
        "data",
        "model",
    ),  # of the contrastive loss: rows of the similarity of all texts with all images
    # weights
    "layers": None,
    "embed": None,
    "heads": "model",
    "kv_heads": "model",
    "head_dim": None,
    "mlp": "model",
    "vocab": "model",
    "new_tokens": None,
    "latents": None,
    # the resampler's: its images are spread over all axes, its weights are whole
    "latent_heads": None,
    "latent_mlp": None,
    "vision": None,
    "kernel": None,
    "joint": None,
}


def spec(axes: tuple[str | None, ...], rules: Mapping[str, MeshAxes] = RULES) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes.

    Raises:
        ValueError: for an axis that the table does not hold, or two dimensions on one mesh axis.
    """
    if unknown := [axis for axis in axes if axis is not None and axis not in rules]:
        raise ValueError(
            f"Unknown logical axes {unknown} in {axes}; expected some of "
            f"{sorted(rules)} (core/axes.py)."
        )
    entries = [None if axis is None else rules[axis] for axis in axes]
    used = [
        name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry or ())
    ]
    if len(used) != len(set(used)):
        raise ValueError(f"Axes {axes} put two dimensions on one mesh axis: {entries}.")
    return PartitionSpec(*entries)


@runtime_checkable
class AxisLayout(Protocol):
    """Where a program wants what a model names; see `sharding.layout`."""

    def activation(self, x: Array, axes: tuple[str | None, ...]) -> Array:
        """Returns x, placed."""

    def spreads(self, size: int, axis: str) -> bool:
        """Whether a dimension of this size is split over all chips of the mesh."""

    def weight(self, w: Array, axes: tuple[str | None, ...]) -> Array:
        """Returns w as it is; its gradient will be placed."""


_LAYOUT: contextvars.ContextVar[AxisLayout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def with_layout(layout: AxisLayout | None) -> Iterator[None]:
    """What is traced inside has its activations and gradients placed by `layout`."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def constrain(x: Array, *axes: str | None) -> Array:
    """Returns x, placed by its logical axes, one for each dimension.

    As it is where no layout is set.
    """
    layout = _LAYOUT.get()
    return x if layout is None else layout.activation(x, axes)


def is_spread(size: int, axis: str) -> bool:
    """Whether a dimension of this size, of this logical axis, is split over all chips, none of which holds the same as another."""
    layout = _LAYOUT.get()
    return layout is None or layout.spreads(size, axis)


def constrain_gradient(w: Array, axes: tuple[str | None, ...]) -> Array:
    """Returns the weight w as it is; what flows back to it is placed by its logical axes."""
    layout = _LAYOUT.get()
    return w if layout is None else layout.weight(w, axes)
