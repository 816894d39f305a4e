"""The product of activations and a weight, in a form whose gradient suits the platform.

    x [... in] w [in... out...] -> y [... out...]        dw = x^T dy, summed over all rows

XLA's CPU compiler transposes dy in memory for the gradient of the weight if the rows of x have more
than one dimension, and computes what dy comes from in that slow copy. With all rows in one
dimension it needs no copy: 41 ms against 116 for [2048, 512]^T [2048, 2048] (processor time, 29
November 2026). The function is the same; the sums of the gradient may be in another order.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.notation import Array, Float

# Smaller weights keep their form: they gain little, and the smallest models train on a CPU to the
# same bits as in version 0.4.0.
LEAST_SIZE = 2**12


def gains(w: Float[Array, "..."]) -> bool:
    """Returns True if the form is the faster one: a large weight, on one CPU device."""
    one_device = axes_lib.is_spread(1, "rows")  # on several, rows are split in both dimensions
    return w.size >= LEAST_SIZE and one_device and axes_lib.on_cpu()


def contract(x: Float[Array, "..."], w: Float[Array, "..."], num_in: int) -> Float[Array, "..."]:
    """Contracts the last `num_in` axes of x with the first of w, in their dtype."""
    size = math.prod(w.shape[:num_in])
    y = jnp.dot(x.reshape(-1, size), w.reshape(size, -1))
    return y.reshape(*x.shape[: x.ndim - num_in], *w.shape[num_in:])
