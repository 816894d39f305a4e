"""How one program lays out what its model names.

Activations by logical axis, gradients as ZeRO-1 keeps them.

    residual stream   [rows: replica x data x model, L, D]         between blocks (sequence parallelism; by length where rows are few)
    inside a block    [batch: replica x data, L, heads or mlp: model]
    images            [replica x data x model, ...]                no chip encodes an image twice

Both parts have to be said. With the residual stream alone split over all chips, the compiler's
backward pass gathers whole weights instead of activations; tests/distributed/test_compiled_step.py
looks for that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.axes import MeshAxes
from flamingo_jax.sharding import zero
from flamingo_jax.sharding.compile import weight_spec


@dataclasses.dataclass(frozen=True)
class Layout:
    """A `core.axes.AxisLayout` on one mesh.

    Attributes:
        mesh: the device mesh.
        zero: whether gradients are reduce-scattered over data, to where ZeRO-1 keeps the
            optimizer's state.
        sequence_parallel: whether the residual stream is split over model between blocks.
    """

    mesh: Mesh
    zero: bool = True
    sequence_parallel: bool = True

    def activation(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Returns x with the sharding of its logical axes.

        A mesh axis that does not divide its dimension, or that an earlier dimension has, is left
        out.
        """
        if self.mesh.size == 1:
            return x
        entries: list[MeshAxes] = []
        free = dict(self.mesh.shape)
        for size, axis in zip(x.shape, axes, strict=True):
            names = self._dividing(size, axis, free)
            entries.append(names or None)
            free = {name: number for name, number in free.items() if name not in names}
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(self.mesh, PartitionSpec(*entries))
        )

    def spreads(self, size: int, axis: str) -> bool:
        """Returns whether a dimension of this size is split over all chips of the mesh."""
        names = self._dividing(size, axis, self.mesh.shape)
        return math.prod(self.mesh.shape[name] for name in names) == self.mesh.size

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
        return tuple(name for name in names if name in free)

    def weight(self, w: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Returns w.

        Its gradient is placed where ZeRO-1 wants it, block by block inside the backward scan.
        """
        if self.mesh.size == 1 or not self.zero:
            return w
        part = zero.spec(axes, w.shape, self.mesh)
        w = _with_placed_gradient(w, NamedSharding(self.mesh, part))
        if "kernel" in axes or (self.mesh.shape["replica"] == 1 and self.mesh.shape["model"] > 1):
            # A part on every chip of the mesh, or a part of a convolution's channels: to form it,
            # the compiler would gather the
            # activations of the whole batch. So the gradient is whole over data first, and then
            # cut.
            w = _with_placed_gradient(
                w, NamedSharding(self.mesh, weight_spec("", w.shape, axes, self.mesh))
            )
        return w


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_placed_gradient(w: jax.Array, sharding: NamedSharding) -> jax.Array:
    return w


_with_placed_gradient.defvjp(
    lambda w, sharding: (w, None),
    lambda sharding, _, gradient: (jax.lax.with_sharding_constraint(gradient, sharding),),
)
