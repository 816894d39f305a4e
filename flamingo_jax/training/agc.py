"""Adaptive gradient clipping.

The norm of a gradient is bounded by a fraction of the norm of the weights that it moves (Brock et
al. 2021, arXiv 2102.06171).

    g_unit --> g_unit * min(1, clip * max(|w_unit|, 1e-3) / |g_unit|)

A unit is the weights that feed one output channel: those of one o in a convolution [kh kw I O] or a
linear map [I O], those of one (h, k) in an output with heads [I H K]. A vector or scalar (bias,
gain) is one unit. Stacked layers are clipped one by one. The logical axes of a weight distinguish
these cases: a stacked gain [layers O] is one vector per layer, not a linear map.

The paper clips its NFNet in this way in the contrastive stage, with clip = 1e-2, and the text
encoder by a global norm (paper, B.1.3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.core.params import Axes

SMALLEST_NORM = 1e-3
"""Lower bound of a weight's norm, so that weights that start at 0 can move (published epsilon)."""


def clip_units(gradient: jax.Array, weight: jax.Array, axes: Axes, clip: float) -> jax.Array:
    """Scales each unit's gradient down to at most clip * max(norm of its weights, SMALLEST_NORM).

    Args:
        gradient: of `weight`, in the same shape.
        weight: float32 master weight.
        axes: logical axes of the weight.
        clip: 0.01 in the paper.
    """
    dims = _summed_dims(axes)
    limit = clip * jnp.maximum(_norm(weight, dims), SMALLEST_NORM)
    norm = _norm(gradient, dims)
    # 1e-6 avoids a division by 0; a norm that small is below the limit
    factor = limit / jnp.maximum(norm, 1e-6)
    return jnp.where(norm > limit, gradient * factor, gradient)


def _summed_dims(axes: Axes) -> tuple[int, ...]:
    """Returns the dimensions that a unit's norm sums over."""
    of_layer = [i for i, axis in enumerate(axes) if axis != "layers"]
    num_outputs = 2 if "head_dim" in axes[-1:] else 1
    return tuple(of_layer[:-num_outputs] or of_layer)


def _norm(x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=dims, keepdims=True))
