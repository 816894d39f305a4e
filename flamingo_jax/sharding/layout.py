"""Where the activations and gradients of a program are on the mesh.

Activations are split by logical axis, gradients as ZeRO-1 splits the optimizer's state.

    residual stream   [rows: replica x data x model, L, D]    between blocks (sequence parallelism;
                                                              by length where rows are few)
    inside a block    [batch: replica x data, L, heads or mlp: model]
    images            [replica x data x model, ...]           no chip encodes an image twice

The first two must both be given. If only the residual stream is split over all chips, the compiled
backward pass gathers whole weights instead of activations; tests/distributed/test_compiled_step.py
checks this.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.axes import MeshAxes
from flamingo_jax.sharding import exchange, zero
from flamingo_jax.sharding.compile import weight_spec


@dataclasses.dataclass(frozen=True)
class Layout:
    """A `core.axes.AxisLayout` on one mesh.

    Attributes:
        mesh: the device mesh.
        zero: True to reduce-scatter gradients over data, as ZeRO-1 splits the optimizer's state.
        sequence_parallel: True to split the residual stream over model between blocks.
        apart: axes of the mesh along which each position computes by itself
            (`datasets_per_step.accumulate_apart`): nothing else is split over them, and gradients
            are not summed over them.
        halves: True to run the LM's blocks for two halves of the rows in turn (`models.halves`).
        sums: the collective of the sums over model in such blocks (`exchange`).
        within_halves: True inside such a block.
    """

    mesh: Mesh
    zero: bool = True
    sequence_parallel: bool = True
    apart: tuple[str, ...] = ()
    halves: bool = False
    sums: exchange.Sums = "reduce_scatter"
    within_halves: bool = False

    @property
    def device(self) -> jax.Device:
        """The first device of the mesh."""
        return self.mesh.devices.flat[0]

    def activation(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Returns x with the sharding of its logical axes.

        A mesh axis is left out if it does not divide the dimension, or if an earlier dimension is
        split over it.
        """
        if self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(x.shape, axes))

    def sharding(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
        """Returns the sharding of an activation of this shape, as `activation` places it."""
        entries: list[MeshAxes] = []
        free = dict(self.mesh.shape)
        for size, axis in zip(shape, axes, strict=True):
            names = self._dividing(size, axis, free)
            entries.append(names or None)
            free = {name: number for name, number in free.items() if name not in names}
        return NamedSharding(self.mesh, PartitionSpec(*entries))

    def spreads(self, size: int, axis: str) -> bool:
        """Returns True if a dimension of this size is split over all chips of the mesh."""
        names = self._dividing(size, axis, self.mesh.shape)
        chips = self.mesh.size // math.prod(self.mesh.shape[name] for name in self.apart)
        return math.prod(self.mesh.shape[name] for name in names) == chips

    def has_halves(self, rows: int) -> bool:
        """Returns True if halves go through blocks in turn, and both have rows for each chip."""
        on = self.halves and self.sequence_parallel and self.mesh.shape["model"] > 1
        return on and not self.apart and rows % 2 == 0 and self.spreads(rows // 2, "rows")

    def for_halves(self) -> Layout:
        """Returns the layout of a block through which halves go in turn."""
        return dataclasses.replace(self, within_halves=True)

    def gathered(self, x: jax.Array) -> jax.Array:
        """Returns `exchange.gathered`."""
        return exchange.gathered(self.mesh, self.sums, x)

    def summed(self, summands: jax.Array) -> jax.Array:
        """Returns `exchange.summed`."""
        return exchange.summed(self.mesh, self.sums, summands)

    def product(
        self,
        multiply: exchange.Multiply,
        axes: tuple[str | None, ...],
        contracted: tuple[int, ...],
        x: jax.Array,
        w: Any,
        bias: jax.Array | None,
    ) -> jax.Array:
        """Returns multiply(x, w) + bias; arguments as in `core.axes.product`.

        Where halves go in turn, a product of copies [n, B, T, ...] is [B, T, ...], and a product of
        [B, T, ...] is summands [n, B, T, ...], each with its share of the bias. Products of arrays
        with one batch axis (relative positions) stay as they are.
        """
        batch_axes = x.ndim - len(contracted)
        if self.within_halves and batch_axes == 3:
            y = exchange.of_copies(self.mesh, multiply, axes, contracted, x, w)
        elif self.within_halves and batch_axes == 2:
            y = exchange.in_summands(self.mesh, multiply, axes, contracted, x, w)
            bias = None if bias is None else bias / len(y)
        else:
            y = multiply(x, w)
        return axes_lib.with_bias(y, bias)

    def _dividing(self, size: int, axis: str | None, free: Mapping[str, int]) -> tuple[str, ...]:
        names = self._names(axis, free)
        while names and size % math.prod(free[name] for name in names):
            names = names[:-1]
        return names

    def _names(self, axis: str | None, free: Mapping[str, int]) -> tuple[str, ...]:
        if axis in ("rows", "sequence") and not self.sequence_parallel:
            axis = "batch" if axis == "rows" else None
        entry = axes_lib.RULES[axis] if axis else None
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        return tuple(name for name in names if name in free and name not in self.apart)

    def weight(self, w: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Returns w; its gradient is split as in ZeRO-1, block by block in the backward scan."""
        if self.mesh.size == 1 or not self.zero:
            return w
        part = zero.spec(axes, w.shape, self.mesh)
        w = _with_placed_gradient(w, NamedSharding(self.mesh, part))
        replicas = 1 if "replica" in self.apart else self.mesh.shape["replica"]
        if replicas == 1 and self.mesh.shape["model"] > 1:
            # Here each chip of the mesh has another part. To form it directly, the compiler would
            # gather the activations of the whole batch. So the gradient is first reduced to a whole
            # over data, then cut.
            whole = weight_spec("", w.shape, axes, self.mesh)
            w = _with_placed_gradient(w, NamedSharding(self.mesh, whole))
        return w


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_placed_gradient(w: jax.Array, sharding: NamedSharding) -> jax.Array:
    return w


_with_placed_gradient.defvjp(
    lambda w, sharding: (w, None),
    lambda sharding, _, gradient: (jax.lax.with_sharding_constraint(gradient, sharding),),
)
