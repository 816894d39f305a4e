"""Adaptive gradient clipping.

A gradient may be no larger than a share of the weight that it moves (Brock et al. 2021, arXiv
2102.06171).

    g_unit --> g_unit * min(1, clip * max(|w_unit|, 1e-3) / |g_unit|)

A unit is what feeds one output channel: of a convolution [kh kw I O] or a linear map [I O] all
weights of one o; of an output in heads [I H K] those of one (h, k). Vectors and scalars (biases,
gains) are one unit as a whole. Of stacked layers each is clipped by itself. The logical axes of a
weight tell these apart: a stacked gain [layers O] is a vector for each layer, not a linear map.

The paper clips its NFNet so in the contrastive stage, with 1e-2 (B.1.3); the text encoder's
gradient has a global norm there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.core.params import Axes

SMALLEST_NORM = 1e-3
"""Of a weight: what is born as 0 may move (the published epsilon)."""


def clip_units(gradient: jax.Array, weight: jax.Array, axes: Axes, clip: float) -> jax.Array:
    """Returns the gradient, each unit's norm brought down to at most clip * max(norm of its weights, SMALLEST_NORM).

    Args:
        gradient: of `weight`, in its shape.
        weight: float32 master.
        axes: its logical axes.
        clip: 0.01 in the paper.
    """
    inputs = _inputs(axes)
    limit = clip * jnp.maximum(_norm(weight, inputs), SMALLEST_NORM)
    norm = _norm(gradient, inputs)
    # never a division by 0; where the norm is that small, nothing is clipped
    factor = limit / jnp.maximum(norm, 1e-6)
    return jnp.where(norm > limit, gradient * factor, gradient)


def _inputs(axes: Axes) -> tuple[int, ...]:
    """The dimensions that a unit's norm sums over."""
    own = [i for i, axis in enumerate(axes) if axis != "layers"]
    outputs = 2 if "head_dim" in axes[-1:] else 1
    return tuple(own[:-outputs] or own)


def _norm(x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """The root of the sum of squares, with dims kept."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=dims, keepdims=True))
