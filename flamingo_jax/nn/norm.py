"""LayerNorm and RMSNorm over the last axis.

    LayerNorm   (x - mean(x)) / sqrt(var(x) + epsilon) * scale + offset
    RMSNorm     x / sqrt(mean(x^2) + epsilon) * scale      (Gemma: * (1 + scale))

Statistics are computed in float32; the result has the dtype of the input.
"""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.params import param

EPSILON = 1e-5


class LayerNorm(hk.Module):
    """LayerNorm with learnt scale and offset (paper v1, 3.1.2: "learnt biases and offsets")."""

    def __init__(
        self, *, axis_name: str = "embed", epsilon: float = EPSILON, bias: bool = True, name: str
    ):
        """Describes the norm.

        Args:
            axis_name: logical axis of the last dimension.
            epsilon: added to the variance.
            bias: whether there is an offset.
            name: module name.
        """
        super().__init__(name=name)
        self.axis_name, self.epsilon, self.bias = axis_name, epsilon, bias

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis."""
        y = _standardise(x, self.epsilon)
        scale = param("scale", x.shape[-1:], (self.axis_name,), jnp.ones)
        y = y * jnp.broadcast_to(scale.astype(jnp.float32), y.shape)
        if self.bias:
            offset = param("offset", x.shape[-1:], (self.axis_name,), jnp.zeros)
            y = y + jnp.broadcast_to(offset.astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


def standardise(x: Float[Array, "... D"], *, epsilon: float = EPSILON) -> Float[Array, "... D"]:
    """Returns (x - mean) / deviation: a LayerNorm without weights."""
    return _standardise(x, epsilon).astype(x.dtype)


def _standardise(x: Array, epsilon: float) -> Array:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + epsilon)


class RMSNorm(hk.Module):
    """RMSNorm, the norm of Chinchilla (Zhang and Sennrich 2019)."""

    def __init__(
        self,
        *,
        axis_name: str = "embed",
        epsilon: float = EPSILON,
        from_one: bool = False,
        name: str,
    ):
        """Describes the norm.

        Args:
            axis_name: logical axis of the last dimension.
            epsilon: added to the mean square.
            from_one: whether the weight is the scale's difference from 1, which 16 bits hold more
                exactly than the scale itself (Gemma).
            name: module name.
        """
        super().__init__(name=name)
        self.axis_name, self.epsilon, self.from_one = axis_name, epsilon, from_one

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises the last axis."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        init = jnp.zeros if self.from_one else jnp.ones
        scale = param("scale", x.shape[-1:], (self.axis_name,), init).astype(jnp.float32)
        scale = 1.0 + scale if self.from_one else scale
        return (y * jnp.broadcast_to(scale, y.shape)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... D"],
    *,
    axis_name: str = "embed",
    epsilon: float = EPSILON,
    bias: bool = True,
    name: str,
) -> Float[Array, "... D"]:
    """Makes and applies one `LayerNorm`."""
    return LayerNorm(axis_name=axis_name, epsilon=epsilon, bias=bias, name=name)(x)


def rms_norm(
    x: Float[Array, "... D"],
    *,
    axis_name: str = "embed",
    epsilon: float = EPSILON,
    from_one: bool = False,
    name: str,
) -> Float[Array, "... D"]:
    """Makes and applies one `RMSNorm`."""
    return RMSNorm(axis_name=axis_name, epsilon=epsilon, from_one=from_one, name=name)(x)
