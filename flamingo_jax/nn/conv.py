"""The convolution of NFNet, with standardised weights (Brock et al. 2021, arXiv 2102.06171).

    w [kh, kw, I/groups, O] -- (w - mean) * rsqrt(var * fan_in) * gain --> w_hat
                                                                             |
    x [M h w I] -------------------------------------------------------- convolve + bias
                                                                             |
                                                                             v  [M h' w' O]

The weights of each output channel get mean 0 and variance 1/fan_in before they are used. So a
convolution keeps the mean and the variance of its input, and needs no batch normalisation. In a
frozen network w_hat is a constant: `standardise_weights` computes it once ("folded").
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.params import param, weight
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.nn.linear import product

Standardisation = Literal["apply", "folded"]

# Lower bound of var * fan_in: constant weights become 0 and not NaN.
SMALLEST_VARIANCE = 1e-4


def standardise_weights(
    w: Float[Array, "... kh kw I O"], gain: Float[Array, "... O"]
) -> Float[Array, "... kh kw I O"]:
    """Returns w_hat = (w - mean) * rsqrt(max(var * fan_in, 1e-4)) * gain.

    Mean and variance are those of each output channel, in float32.

    Args:
        w: weights; I is the number of input channels of one group. Leading dimensions are stacked
            layers.
        gain: one learnt factor for each output channel.
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
    x: Float[Array, "M h w I"],
    w: Float[Array, "kh kw J O"] | Int8Weight,
    *,
    stride: int = 1,
    groups: int = 1,
) -> Float[Array, "M h2 w2 O"]:
    """Returns the convolution with padding SAME, in the dtype of x; J = I / groups.

    A CPU convolves group by group: XLA's grouped convolution takes many times as long there. A TPU
    convolves two groups as one, with weights of 0 between them: by the compiler's estimates this
    takes 0.62 of the time (40x40x256, 8 images on a v4 chip, forward and backward). For more groups
    the grouped form is the faster one there. cuDNN has kernels for groups.

    Raises:
        ValueError: w is in 8 bits, and the convolution is no 1x1 one.
    """
    if w.shape[:2] == (1, 1) and stride == groups == 1:
        return product(x, jax.tree.map(lambda array: array[0, 0], w))
    if isinstance(w, Int8Weight):
        raise ValueError(f"A {w.shape} convolution is in 8 bits, and only 1x1 ones can be.")
    w = w.astype(x.dtype)
    if groups == 1:
        return _convolve(x, w, stride)
    if axes_lib.on_cpu():
        return _group_by_group(x, w, stride, groups)
    if axes_lib.on_tpu() and groups == 2:
        return _convolve(x, _without_groups(w, groups), stride)
    if axes_lib.is_spread(len(x), "images"):
        return _convolve(x, w, stride, groups)
    return _grouped(x, w, stride, groups)


def _convolve(x: Array, w: Array, stride: int, groups: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _group_by_group(x: Array, w: Array, stride: int, groups: int) -> Array:
    """A grouped convolution as one convolution for each group: much faster on a CPU."""
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(w, groups, axis=-1), strict=True)
    return jnp.concatenate([_convolve(*part, stride) for part in parts], axis=-1)


def _without_groups(w: Float[Array, "kh kw J O"], groups: int) -> Float[Array, "kh kw I O"]:
    """Returns the weights of all input channels: 0 between groups."""
    own = jnp.arange(w.shape[-1]) // (w.shape[-1] // groups)
    blocks = [jnp.where(own == group, w, 0) for group in range(groups)]
    return jnp.concatenate(blocks, axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _grouped(x: Array, w: Array, stride: int, groups: int) -> Array:
    """A grouped convolution with a gradient that is right if chips share images.

    If several chips have the same images, XLA's partitioner sums the gradient of a grouped
    convolution over these chips too: it is twice as large on two (seen in XLA of jax 0.10.2).
    Without groups it is right. So the gradient of the weights is taken group by group, which takes
    1.5 times as long.
    """
    return _convolve(x, w, stride, groups)


def _forward(x: Array, w: Array, stride: int, groups: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, w, stride, groups), (x, w)


def _backward(
    stride: int, groups: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, w = saved
    (dx,) = jax.vjp(lambda x: _convolve(x, w, stride, groups), x)[1](dy)
    (dw,) = jax.vjp(lambda w: _group_by_group(x, w, stride, groups), w)[1](dy)
    return dx, dw


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
    """Applies a convolution with standardised weights, and a bias.

    The weights are `name/{w, gain, bias}`, or `name/{w, bias}` if they are folded or in 8 bits.

    Args:
        x: images or feature maps.
        channels: O, the number of output channels.
        kernel: side of the square window.
        stride: step of the window; the output is ceil(h / stride) high.
        groups: groups of channels, each convolved by itself; divides I and O.
        standardisation: "apply" standardises `w` in every call; "folded" means that `w` is
            standardised already.
        name: of the layer within the current module.

    Raises:
        ValueError: `groups` does not divide both numbers of channels.
    """
    if x.shape[-1] % groups or channels % groups:
        raise ConfigError(
            f"Convolution {name!r}: {groups} groups must divide {x.shape[-1]} input and {channels} "
            "output channels."
        )
    shape = (kernel, kernel, x.shape[-1] // groups, channels)
    with hk.name_scope(name):
        init = hk.initializers.RandomNormal(1.0 / math.sqrt(math.prod(shape[:-1])))
        axes = ("kernel", "kernel", "vision", "vision")
        is_product = kernel == stride == groups == 1
        w = (
            weight("w", shape, axes, init, contracted=(2,))
            if is_product
            else param("w", shape, axes, init)
        )
        # A weight in 8 bits was standardised before it was rounded.
        if standardisation == "apply" and not isinstance(w, Int8Weight):
            w = standardise_weights(w, param("gain", (channels,), ("vision",), jnp.ones))
            # Whole on each chip, once, and so is its gradient, before ZeRO-1 cuts that of `w`.
            # Without this the compiler keeps parts, and gathers them for each use.
            w = axes_lib.constrain(w, *axes)
        bias = param("bias", (channels,), ("vision",), jnp.zeros)
    y = convolve(x, w, stride=stride, groups=groups) + bias.astype(x.dtype)[None, None, None]
    return checkpoint_name(y, "convolved")
