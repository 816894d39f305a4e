"""Scaled weight standardisation.

The convolution of normaliser-free networks (Brock et al. 2021, arXiv 2102.06171).

    w [kh, kw, I/groups, O] --(w - mean) * rsqrt(var * fan_in) * gain--> w_hat ;   x [M h w I] * w_hat + bias -> [M h' w' O]

Each output channel's weights are brought to mean 0 and variance 1/fan_in before they are used, so
that a convolution neither shifts nor scales its input's statistics and no batch normalisation is
needed. For a frozen network the outcome is a constant: `standardise_weights` is then applied once,
ahead of time ("folded").
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core.axes import is_spread
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.params import param

Standardisation = Literal["apply", "folded"]

# of a channel's weights, times fan_in: constant weights become 0 and not NaN
SMALLEST_VARIANCE = 1e-4


def standardise_weights(
    w: Float[Array, "... kh kw I O"], gain: Float[Array, "... O"]
) -> Float[Array, "... kh kw I O"]:
    """Returns the standardised weights.

    Leading dimensions (stacked layers) are independent of each other.

    `w_hat = (w - mean) * rsqrt(max(var * fan_in, 1e-4)) * gain` with the statistics of each output
    channel, in float32.

    Args:
        w: Float[..., kh, kw, I, O] weights, I being the input channels of one group.
        gain: Float[..., O] one learnt factor for each output channel.
    """
    fan_in = math.prod(w.shape[-4:-1])
    w32 = w.astype(jnp.float32)
    mean = jnp.mean(w32, axis=(-4, -3, -2), keepdims=True)
    variance = jnp.var(w32, axis=(-4, -3, -2), keepdims=True)
    scale = (
        jax.lax.rsqrt(jnp.maximum(variance * fan_in, SMALLEST_VARIANCE))
        * gain.astype(jnp.float32)[..., None, None, None, :]
    )
    return ((w32 - mean) * scale).astype(w.dtype)


def convolve(
    x: Float[Array, "M h w I"], w: Float[Array, "kh kw J O"], *, stride: int = 1, groups: int = 1
) -> Float[Array, "M h2 w2 O"]:
    """Returns the convolution with padding SAME, in the dtype of x; J = I / groups."""
    if w.shape[:2] == (1, 1) and stride == groups == 1:
        return jnp.einsum("mhwi,io->mhwo", x, w[0, 0].astype(x.dtype))
    w = w.astype(x.dtype)
    alike = groups > 1 and not is_spread(len(x), "images")
    return _grouped(x, w, stride, groups) if alike else _convolve(x, w, stride, groups)


def _convolve(x: Array, w: Array, stride: int, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _grouped(x: Array, w: Array, stride: int, groups: int) -> Array:
    """A convolution whose weights' gradient is taken group by group.

    For images that are not spread over all chips.

    Where several chips have the same images, XLA's partitioner adds the gradient of a convolution
    in groups up over those chips too: it is twice as large on two (seen in XLA of jax 0.10.2).
    Without groups it is right. Group by group it takes half as long again.
    """
    return _convolve(x, w, stride, groups)


def _forward(x: Array, w: Array, stride: int, groups: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, w, stride, groups), (x, w)


def _backward(
    stride: int, groups: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, w = saved
    (dx,) = jax.vjp(lambda x: _convolve(x, w, stride, groups), x)[1](dy)
    by_group = zip(*(jnp.split(array, groups, axis=-1) for array in (x, w, dy)), strict=True)
    dw = [
        jax.vjp(lambda own, x=x: _convolve(x, own, stride), own)[1](dy)[0]
        for x, own, dy in by_group
    ]
    return dx, jnp.concatenate(dw, axis=-1)


_grouped.defvjp(_forward, _backward)


def ws_conv(
    x: Float[Array, "M h w I"],
    channels: int,
    *,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    standardisation: Standardisation = "apply",
    name: str,
) -> Float[Array, "M h2 w2 O"]:
    """A weight-standardised convolution with bias.

    Weights `name/{w, gain, bias}`, or `name/{w, bias}` when folded.

    Args:
        x: Float[M, h, w, I] images or feature maps.
        channels: O, the number of output channels.
        kernel: side of the square window.
        stride: step of the window; the output is ceil(h / stride) high.
        groups: number of groups of channels that do not see each other; divides I and O.
        standardisation: "apply" standardises `w` at every call; "folded" takes `w` as already
            standardised.
        name: name of the layer within the current module.

    Raises:
        ValueError: if `groups` does not divide both channel counts.
    """
    if x.shape[-1] % groups or channels % groups:
        raise ValueError(
            f"Convolution {name!r}: {groups} groups must divide {x.shape[-1]} input and {channels} "
            "output channels."
        )
    shape = (kernel, kernel, x.shape[-1] // groups, channels)
    with hk.name_scope(name):
        init = hk.initializers.RandomNormal(1.0 / math.sqrt(math.prod(shape[:-1])))
        w = param("w", shape, ("kernel", "kernel", "vision", "vision"), init)
        if standardisation == "apply":
            w = standardise_weights(w, param("gain", (channels,), ("vision",), jnp.ones))
        bias = param("bias", (channels,), ("vision",), jnp.zeros)
    return convolve(x, w, stride=stride, groups=groups) + bias.astype(x.dtype)[None, None, None]
