"""Linear maps between named axes: one weight, one product.

    linear          x [... in],  w [in..., out...]  -> [... out]
    fused_linear    x [... D],   w [out..., D]      -> [... out]    contracted axis last

Weights are float32, and are cast to the dtype of x. Frozen ones may be in 8 bits:

    y = (x values) * scale          dx = (dy * scale) values^T

The integers are exact in bfloat16, and the compiler casts them inside the product. So no float copy
of the weights exists, neither in the forward nor in the backward pass.
"""

from __future__ import annotations

import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.notation import Array, Float, Float32, Int
from flamingo_jax.core.params import Axes, Initializer, param, weight
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.nn import flat_product


def product(
    x: Float[Array, "..."], w: Array | Int8Weight, contracted: tuple[int, ...] = (0,)
) -> Float[Array, "..."]:
    """Returns x times w, in the dtype of x.

    Args:
        x: its last axes are contracted.
        w: the weight.
        contracted: the axes of w that are contracted, in the order of those of x.
    """
    if isinstance(w, Int8Weight):
        return _int8_product(contracted, x.dtype, x.dtype, x, w)
    w = w.astype(x.dtype)
    flat = contracted == tuple(range(len(contracted))) and flat_product.gains(w)
    return flat_product.contract(x, w, len(contracted)) if flat else _contract(x, w, contracted)


def scores_of_rows(x: Float[Array, "B T D"], table: Array | Int8Weight) -> Float32[Array, "B T V"]:
    """Returns x . row for each row of a table [V, D], summed in float32 and returned in it."""
    if isinstance(table, Int8Weight):
        return _int8_product((1,), jnp.dtype(jnp.float32), x.dtype, x, table)
    return einsum_float32("btd,vd->btv", x, table.astype(x.dtype))


def rows_of(table: Array | Int8Weight, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
    """Returns rows of a table [V, D], in its dtype."""
    if isinstance(table, Int8Weight):
        rows = table.values[ids].astype(jnp.float32) * table.scale[ids]
        return rows.astype(table.dtype)
    return table[ids]


def _contract(
    x: Array, w: Array, contracted: tuple[int, ...], dtype: DTypeLike | None = None
) -> Array:
    last = tuple(range(x.ndim - len(contracted), x.ndim))
    return jax.lax.dot_general(x, w, ((last, contracted), ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _int8_product(
    contracted: tuple[int, ...], dtype: DTypeLike, operand: DTypeLike, x: Array, w: Int8Weight
) -> Array:
    """Returns x times w in `dtype`; x has the dtype `operand`, and so has its gradient.

    A derivative by hand, because JAX alone would keep w in the dtype of x for the backward pass.
    """
    y = _contract(x, w.values.astype(operand), contracted, dtype)
    return _scaled(y, w, contracted).astype(dtype)


def _scaled(y: Array, w: Int8Weight, contracted: tuple[int, ...]) -> Float32[Array, "..."]:
    scale = jnp.squeeze(w.scale, contracted)
    return y.astype(jnp.float32) * jnp.broadcast_to(scale, y.shape)


def _int8_backward(
    contracted: tuple[int, ...], dtype: DTypeLike, operand: DTypeLike, w: Int8Weight, dy: Array
) -> tuple[Array, None]:
    scaled = _scaled(dy, w, contracted).astype(operand)
    out = tuple(axis for axis in range(w.ndim) if axis not in contracted)
    return _contract(scaled, w.values.astype(operand), out), None


_int8_product.defvjp(lambda *args: (_int8_product(*args), args[-1]), _int8_backward)


class Linear(hk.Module):
    """y = x W + b: contracts the last `num_in` axes of x, and gives axes `out_shape`."""

    def __init__(
        self,
        out_shape: tuple[int, ...],
        *,
        axes: Axes,
        num_in: int = 1,
        bias: bool = False,
        init: Initializer | None = None,
        name: str,
    ):
        """Describes the map.

        Args:
            out_shape: sizes of the new axes.
            axes: logical axes of the weight: the contracted ones, then the new ones.
            num_in: number of trailing axes of the input that are contracted.
            bias: whether a bias over the new axes is added (0 at the start).
            init: of the weight; None = a truncated normal of deviation fan_in^-1/2.
            name: module name.
        """
        super().__init__(name=name)
        self.out_shape, self.axes, self.num_in = out_shape, axes, num_in
        self.bias, self.init = bias, init

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the map, in the dtype of x."""
        in_shape = x.shape[x.ndim - self.num_in :]
        init = self.init or hk.initializers.TruncatedNormal(math.prod(in_shape) ** -0.5)
        contracted = tuple(range(self.num_in))
        w = weight("w", in_shape + self.out_shape, self.axes, init, contracted=contracted)
        multiply = functools.partial(product, contracted=contracted)
        b = None
        if self.bias:
            b = param("b", self.out_shape, self.axes[self.num_in :], jnp.zeros)
        return axes_lib.product(multiply, self.axes, contracted, x, w, b)


def linear(
    x: Float[Array, "..."],
    out_shape: tuple[int, ...],
    *,
    axes: Axes,
    num_in: int = 1,
    bias: bool = False,
    init: Initializer | None = None,
    name: str,
) -> Float[Array, "..."]:
    """Makes and applies one `Linear`."""
    return Linear(out_shape, axes=axes, num_in=num_in, bias=bias, init=init, name=name)(x)


class FusedLinear(hk.Module):
    """y = x W^T into several named axes, with the contracted axis of W last."""

    def __init__(self, out_shape: tuple[int, ...], *, axes: Axes, name: str):
        """Describes the map.

        Args:
            out_shape: sizes of the new axes.
            axes: logical axes of the weight: the new ones, then the contracted one.
            name: module name.
        """
        super().__init__(name=name)
        self.out_shape, self.axes = out_shape, axes

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "..."]:
        """Applies the map, in the dtype of x."""
        width = x.shape[-1]
        init = hk.initializers.TruncatedNormal(width**-0.5)
        last = (len(self.out_shape),)
        w = weight("w", (*self.out_shape, width), self.axes, init, contracted=last)
        multiply = functools.partial(product, contracted=last)
        return axes_lib.product(multiply, self.axes, last, x, w)


def fused_linear(
    x: Float[Array, "... D"], out_shape: tuple[int, ...], *, axes: Axes, name: str
) -> Float[Array, "..."]:
    """Makes and applies one `FusedLinear`."""
    return FusedLinear(out_shape, axes=axes, name=name)(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_float32(
    letters: str, a: Float[Array, "..."], b: Float[Array, "..."]
) -> Float32[Array, "..."]:
    """Returns the einsum of two arrays, summed in float32 and returned in it (scores, logits).

    The gradients have the dtype of the operands. JAX alone would multiply float32 copies of both
    operands in the backward pass.
    """
    return jnp.einsum(letters, a, b, preferred_element_type=jnp.float32)


def _einsum_backward(
    letters: str, operands: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    _, transposed = jax.vjp(lambda a, b: jnp.einsum(letters, a, b), *operands)
    return transposed(gradient.astype(operands[0].dtype))


einsum_float32.defvjp(
    lambda letters, a, b: (einsum_float32(letters, a, b), (a, b)), _einsum_backward
)
