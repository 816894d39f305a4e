"""Products of a model group apart from the collectives before and after them.

    rows     [B, T, D]       rows of the residual stream, split over all chips
    copies   [n, B, T, D]    each of the n chips of a model group has all rows of the group
    summands [n, B, T, D]    each has its summand of all rows of the group

    rows --gathered--> copies --of_copies(w)--> [B, T, M]         w [D, M/n], split by columns
    [B, T, M] --in_summands(w)--> summands --summed--> rows       w [M/n, D], split by rows

The partitioner of XLA would put a collective next to its product. Apart, other products can be
computed in between (`models.halves`). The backward pass has the same four functions: `gathered` and
`summed` are each other's transposes, and so are `of_copies` and `in_summands`.

"Summed" is a reduce-scatter, or an all-to-all: each chip sends to each other chip the rows of that
chip, and then adds what it got, in float32. The TPU compiler runs gathers and all-to-alls while
other instructions compute, but not reduce-scatters. An all-to-all brings as many bytes to each chip
as a reduce-scatter. But a link also carries what passes through to other chips: 1.7 times as much
in a block of 2x2x2 chips, 3.2 times in one of 4x2x2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.sharding.compile import scale_spec, weight_spec

Multiply = Callable[[Array, Any], Array]
Axes = tuple[str | None, ...]
Sums = Literal["reduce_scatter", "all_to_all"]

_BATCH, _ROWS = axes_lib.RULES["batch"], axes_lib.RULES["rows"]
_COPIES = PartitionSpec("model", _BATCH)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gathered(mesh: Mesh, sums: Sums, x: Float[Array, "B ..."]) -> Float[Array, "n B ..."]:
    """Returns copies of rows.

    Args:
        mesh: the device mesh; all its chips divide B.
        sums: how the backward pass sums, as in `summed`.
        x: the rows.
    """
    gather = lambda x: jax.lax.all_gather(x, "model", axis=0, tiled=True)[None]
    return _on_each_chip(mesh, gather, PartitionSpec(_ROWS), _COPIES)(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed(mesh: Mesh, sums: Sums, summands: Float[Array, "n B ..."]) -> Float[Array, "B ..."]:
    """Returns the sums of summands, with their rows split over all chips.

    Args:
        mesh: the device mesh; all its chips divide B.
        sums: the collective.
        summands: one from each chip of a model group.
    """

    def add(summands: Array) -> Array:
        (own,) = summands
        if sums == "reduce_scatter":
            return jax.lax.psum_scatter(own, "model", scatter_dimension=0, tiled=True)
        received = jax.lax.all_to_all(own, "model", 0, 0, tiled=True)
        received = received.reshape(mesh.shape["model"], -1, *own.shape[1:])
        # One by one: a reduction over the first axis takes a TPU 2.6 times as long (v4, 8 parts).
        total = functools.reduce(jnp.add, (part.astype(jnp.float32) for part in received))
        return total.astype(own.dtype)

    return _on_each_chip(mesh, add, _COPIES, PartitionSpec(_ROWS))(summands)


gathered.defvjp(
    lambda mesh, sums, x: (gathered(mesh, sums, x), None),
    lambda mesh, sums, _, dy: (summed(mesh, sums, dy),),
)
summed.defvjp(
    lambda mesh, sums, summands: (summed(mesh, sums, summands), None),
    lambda mesh, sums, _, dy: (gathered(mesh, sums, dy),),
)


def of_copies(
    mesh: Mesh,
    multiply: Multiply,
    axes: Axes,
    contracted: tuple[int, ...],
    copies: Float[Array, "n B ..."],
    w: Array | Int8Weight,
) -> Float[Array, "B ..."]:
    """Returns multiply(x, w) of the group's rows x [B, ...], split over model as w is.

    Args:
        mesh: the device mesh.
        multiply: the product; it is linear in x.
        axes: logical axes of w. The model axis splits none that is contracted, and perhaps none at
            all (key/value heads that are fewer than its chips).
        contracted: the axes of w that the product contracts, the last ones of x.
        copies: of x.
        w: the weight.
    """
    if "model" in weight_spec("", w.shape, axes, mesh):
        return _columns(mesh, multiply, axes, contracted, copies, w)
    return multiply(_own(mesh, copies), w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _columns(
    mesh: Mesh, multiply: Multiply, axes: Axes, contracted: tuple[int, ...], copies: Array, w: Any
) -> Array:
    return multiply(_own(mesh, copies), w)


def _columns_backward(
    mesh: Mesh,
    multiply: Multiply,
    axes: Axes,
    contracted: tuple[int, ...],
    operands: tuple[Array, Any],
    dy: Array,
) -> tuple[Array, Any]:
    copies, w = operands
    out = tuple(axis for axis in range(w.ndim) if axis not in contracted)
    x_axes = copies.ndim - 1 - len(contracted)
    transposed = _transposed(multiply, contracted, x_axes, copies.dtype)
    _, pull = jax.vjp(lambda w: multiply(_own(mesh, copies), w), w)
    return _summands(mesh, transposed, axes, out, dy, w), pull(dy)[0]


# The gradient of a frozen weight is traced too, and is removed by the compiler, as nothing uses it.
_columns.defvjp(lambda *args: (_columns(*args), args[4:]), _columns_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def in_summands(
    mesh: Mesh,
    multiply: Multiply,
    axes: Axes,
    contracted: tuple[int, ...],
    x: Float[Array, "B ..."],
    w: Array | Int8Weight,
) -> Float[Array, "n B ..."]:
    """Returns the summands of multiply(x, w).

    Args:
        mesh: the device mesh.
        multiply: the product; it is linear in x.
        axes: logical axes of w. The model axis splits one that is contracted.
        contracted: the axes of w that the product contracts, the last ones of x.
        x: the group's rows, split over model as w is.
        w: the weight.
    """
    return _summands(mesh, multiply, axes, contracted, x, w)


def _in_summands_backward(
    mesh: Mesh,
    multiply: Multiply,
    axes: Axes,
    contracted: tuple[int, ...],
    operands: tuple[Array, Any],
    dsummands: Array,
) -> tuple[Array, Any]:
    x, w = operands
    dy = _own(mesh, dsummands)  # a sum hands its gradient to each summand
    transposed = _transposed(multiply, contracted, x.ndim - len(contracted), x.dtype)
    _, pull = jax.vjp(lambda w: multiply(x, w), w)
    return transposed(dy, w), pull(dy)[0]


in_summands.defvjp(lambda *args: (in_summands(*args), args[4:]), _in_summands_backward)


def _on_each_chip(mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _own(mesh: Mesh, copies: Array) -> Array:
    """Returns the group's rows [B, ...]: each chip takes its copy."""
    return _on_each_chip(mesh, lambda copies: copies[0], _COPIES, PartitionSpec(_BATCH))(copies)


def _summands(
    mesh: Mesh, multiply: Multiply, axes: Axes, contracted: tuple[int, ...], x: Array, w: Any
) -> Array:
    """Returns multiply(x, w) of each chip's part of x and w, not summed."""
    entries = axes_lib.spec(axes)
    # Else each chip would have the whole product.
    assert "model" in [entries[axis] for axis in contracted], (axes, contracted)
    before = (None,) * (x.ndim - 1 - len(contracted))
    of_x = PartitionSpec(_BATCH, *before, *(entries[axis] for axis in contracted))
    of_w: Any = entries
    if isinstance(w, Int8Weight):
        of_w = Int8Weight(entries, scale_spec(w, entries), w.dtype)

    def run(x: Array, w: Any) -> Array:
        with axes_lib.with_layout(None):
            return multiply(x, w)[None]

    return _on_each_chip(mesh, run, (of_x, of_w), _COPIES)(x, w)


def _transposed(
    multiply: Multiply, contracted: tuple[int, ...], x_axes: int, dtype: Any
) -> Multiply:
    """Returns (dy, w) -> dx; x has `x_axes` axes before those that are contracted."""

    def transposed(dy: Array, w: Any) -> Array:
        shape = tuple(w.shape[axis] for axis in contracted)
        zeros = jnp.zeros((*dy.shape[:x_axes], *shape), dtype)
        _, pull = jax.vjp(lambda x: multiply(x, w), zeros)
        return pull(dy)[0]

    return transposed
