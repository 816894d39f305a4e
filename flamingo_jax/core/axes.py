"""The sharding layout as one table: logical axes -> mesh axes.

Weights are sharded over "model" as in Megatron (paper, B.1.2). Each weight names its dimensions
("embed", "heads"), and this table decides how a dimension is split. `sharding.compile` applies it
to each weight, and replicates key/value heads that the mesh does not divide. `sharding.zero` splits
the optimizer state over "data" too. Projections to queries, keys, values and up are split by
columns (heads, mlp), projections out and down by rows, and the vocabulary by rows of the table.

Models name the axes of their activations with `constrain`. It does nothing until a program sets an
`AxisLayout` around the trace (`with_layout`). So a model does not depend on a mesh.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

MeshAxes = str | tuple[str, ...] | None

RULES: Mapping[str, MeshAxes] = {
    # activations
    "batch": ("replica", "data"),
    "length": None,
    # The residual stream between blocks: tokens are split over model too (sequence parallelism,
    # Korthikanti et al. 2022). If there are enough rows, they are split by rows, which moves whole
    # blocks of memory. Otherwise they are split by length.
    "rows": ("replica", "data", "model"),
    "sequence": "model",
    "media": ("replica", "data"),
    "images": ("replica", "data", "model"),  # no chip encodes an image twice
    "frames": None,
    # The contrastive loss: rows of the similarity of all texts with all images.
    "pairs": ("replica", "data", "model"),
    # weights
    "layers": None,
    "embed": None,
    "heads": "model",
    "kv_heads": "model",
    "head_dim": None,
    "mlp": "model",
    "vocab": "model",
    "new_tokens": None,
    "rank": None,
    "latents": None,
    # The resampler: its images are split over all axes, its weights are not split.
    "latent_heads": None,
    "latent_mlp": None,
    "vision": None,
    "kernel": None,
    "joint": None,
}


def spec(axes: tuple[str | None, ...], rules: Mapping[str, MeshAxes] = RULES) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes.

    Raises:
        ValueError: if an axis is not in the table, or two dimensions are on one mesh axis.
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
    """Decides where the arrays of a model are placed; see `sharding.layout`."""

    @property
    def device(self) -> jax.Device:
        """One of the devices of the program; all are of one kind."""

    def activation(self, x: Array, axes: tuple[str | None, ...]) -> Array:
        """Returns x with a sharding constraint."""

    def spreads(self, size: int, axis: str) -> bool:
        """Returns True if a dimension of this size is split over all chips of the mesh."""

    def has_halves(self, rows: int) -> bool:
        """Returns True if the halves of a batch go through blocks in turn (`models.halves`)."""

    def for_halves(self) -> AxisLayout:
        """Returns the layout of such a block: its products take copies or give summands."""

    def gathered(self, x: Array) -> Array:
        """Returns copies [n, B, ...] of rows [B, ...] (`sharding.exchange`)."""

    def summed(self, summands: Array) -> Array:
        """Returns rows [B, ...], the sums of summands [n, B, ...]."""

    def product(
        self,
        multiply: Callable[[Array, Any], Array],
        axes: tuple[str | None, ...],
        contracted: tuple[int, ...],
        x: Array,
        w: Any,
        bias: Array | None,
    ) -> Array:
        """Returns multiply(x, w) + bias; it may decide how the sums over chips are made."""

    def weight(self, w: Array, axes: tuple[str | None, ...]) -> Array:
        """Returns w unchanged, with a sharding constraint on its gradient."""


_LAYOUT: contextvars.ContextVar[AxisLayout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def with_layout(layout: AxisLayout | None) -> Iterator[None]:
    """Makes `layout` place the activations and gradients that are traced inside the context."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def device() -> jax.Device | None:
    """Returns a device of the program that is traced, which decides between forms of a function.

    None without a layout: JAX's default device may be another one, as where a plan for TPUs is made
    on a CPU, and to ask for it would start JAX's backends.
    """
    layout = _LAYOUT.get()
    return None if layout is None else layout.device


def on_cpu() -> bool:
    """Returns True if the layout of the program that is traced is on a CPU."""
    own = device()
    return own is not None and own.platform == "cpu"


def on_tpu() -> bool:
    """Returns True if the layout of the program that is traced is on a TPU."""
    own = device()
    return own is not None and own.platform == "tpu"


def constrain(x: Array, *axes: str | None) -> Array:
    """Returns x placed by its logical axes, one for each dimension; unchanged without a layout."""
    layout = _LAYOUT.get()
    return x if layout is None else layout.activation(x, axes)


def is_spread(size: int, axis: str) -> bool:
    """Returns True if a dimension of this logical axis and size is split over all chips.

    No two chips then have the same part of it.
    """
    layout = _LAYOUT.get()
    return layout is None or layout.spreads(size, axis)


def has_halves(rows: int) -> bool:
    """Returns True if the halves of a batch of `rows` go through blocks in turn."""
    layout = _LAYOUT.get()
    return layout is not None and layout.has_halves(rows)


def for_halves() -> contextlib.AbstractContextManager[None]:
    """In this context, products of tokens take copies or give summands (`models.halves`)."""
    return with_layout(_needed().for_halves())


def gathered(x: Array) -> Array:
    """Returns a copy of the rows x [B, ...] for each chip of their model group: [n, B, ...]."""
    return _needed().gathered(x)


def summed(summands: Array) -> Array:
    """Returns the rows [B, ...] of which the chips of a model group have summands [n, B, ...]."""
    return _needed().summed(summands)


def product(
    multiply: Callable[[Array, Any], Array],
    axes: tuple[str | None, ...],
    contracted: tuple[int, ...],
    x: Array,
    w: Any,
    bias: Array | None = None,
) -> Array:
    """Returns multiply(x, w) + bias, with sums over chips as the layout makes them.

    Args:
        multiply: contracts the last axes of x with `contracted` of w.
        axes: logical axes of w.
        contracted: axes of w.
        x: the activations.
        w: the weight.
        bias: has the last axes of the product.
    """
    layout = _LAYOUT.get()
    if layout is None:
        return with_bias(multiply(x, w), bias)
    return layout.product(multiply, axes, contracted, x, w, bias)


def with_bias(y: Array, bias: Array | None) -> Array:
    """Returns y + bias, in the dtype of y."""
    return y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def _needed() -> AxisLayout:
    layout = _LAYOUT.get()
    assert layout is not None, "`has_halves` is False without a layout"
    return layout


def constrain_gradient(w: Array, axes: tuple[str | None, ...]) -> Array:
    """Returns the weight w unchanged; its gradient is placed by its logical axes."""
    layout = _LAYOUT.get()
    return w if layout is None else layout.weight(w, axes)
