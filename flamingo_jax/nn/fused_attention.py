"""cuDNN's fused attention, for GPUs: the same function as `nn.attention.attend`, in one kernel.

    q [B L H K]   k, v [B S G K]   mask, bias --> one bias [B or 1, H or 1, L, S], in the dtype of q
           |            |              |
           +------------+--------------+--> cuDNN --> [B L H K], 0 for a query without a key

It never writes the scores to memory. `attend` uses it where `fits` returns True, and its own form
elsewhere. The rounding differs: cuDNN takes a bias in the dtype of the queries, so relative
positions and ALiBi are rounded to it (a float32 bias gave NaN in the gradient, jax issue 32242).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from flamingo_jax.core.axes import constrain, is_spread
from flamingo_jax.core.notation import Array, Bool, Float, Float32

# What jax 0.10's checks demand. Newer GPUs also take heads of up to 256.
DTYPES = (jnp.bfloat16, jnp.float16)
HEAD_MULTIPLE, LARGEST_HEAD = 8, 128
COMPUTE_CAPABILITY = 8.0  # Ampere


def has_kernel(device: jax.Device | None) -> bool:
    """Returns True if the device is an NVIDIA GPU for which cuDNN has the kernel."""
    return (
        device is not None
        and device.platform == "gpu"
        and "cuda" in device.client.platform_version
        and float(device.compute_capability) >= COMPUTE_CAPABILITY
    )


def fits(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B L S"] | None,
    bias: Float32[Array, "#B H L S"] | None,
) -> bool:
    """Returns True if cuDNN takes these arrays.

    They are in 16 bits; heads have a multiple of 8 features, up to 128. With a mask or a bias, both
    lengths are even, as the gradient demands: a single decoded token has the plain form. And no
    chip has only a part of the heads, since cuDNN wants queries, keys, values and bias split alike:
    that is made sure of for batches only.
    """
    lengths = (q.shape[1], k.shape[1])
    return (
        q.dtype == k.dtype == v.dtype
        and q.dtype in DTYPES
        and q.shape[-1] % HEAD_MULTIPLE == 0
        and q.shape[-1] <= LARGEST_HEAD
        and ((mask is None and bias is None) or not any(length % 2 for length in lengths))
        and is_spread(len(q), "batch")
    )


def attend_fused(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B L S"] | None = None,
    bias: Float32[Array, "#B H L S"] | None = None,
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B L H K"]:
    """Returns what `nn.attention.attend` returns, but for rounding.

    Args:
        q: queries.
        k: keys; G divides H.
        v: values.
        mask: True where a query may attend a key; None = everywhere.
        bias: added to the scaled scores.
        implementation: "xla" is JAX's own form of the same function, for tests without a GPU.
    """
    by_batch = lambda x: constrain(x, "batch", None, None, None)
    out = jax.nn.dot_product_attention(
        by_batch(q),
        by_batch(k),
        by_batch(v),
        bias=None if bias is None else by_batch(bias.astype(q.dtype)),
        mask=None if mask is None else by_batch(mask[:, None]),
        implementation=implementation,
    )
    if mask is None:
        return out
    # cuDNN returns the mean of all values for a query that may attend no key.
    sees = jnp.any(mask, axis=-1)[:, :, None, None]
    return jnp.where(sees, out, 0)
