"""Linear maps between named axes: one weight, one product.

    linear          x [... in],  w [in..., out...]  -> [... out]
    fused_linear    x [... D],   w [out..., D]      -> [... out]    contracted axis last

Weights are float32, and are cast to the dtype of x.
"""

from __future__ import annotations

import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Float, Float32
from flamingo_jax.core.params import Axes, Initializer, param


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
        w = param("w", in_shape + self.out_shape, self.axes, init)
        y = jnp.tensordot(x, w.astype(x.dtype), axes=self.num_in)
        if self.bias:
            b = param("b", self.out_shape, self.axes[self.num_in :], jnp.zeros)
            y = y + jnp.broadcast_to(b.astype(x.dtype), y.shape)
        return y


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
        w = param("w", (*self.out_shape, width), self.axes, init)
        return jax.lax.dot_general(x, w.astype(x.dtype), (((x.ndim - 1,), (w.ndim - 1,)), ((), ())))


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
