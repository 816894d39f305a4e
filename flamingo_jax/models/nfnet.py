"""NFNet, the normaliser-free residual network that encodes Flamingo's images (paper, Section 2.1).

Source: Brock et al. 2021, arXiv 2102.06171.

    images [M S S 3] --stem--> S/4 --stages--> S/4, S/8, S/16, S/32 --1x1, act--> grid [M h w E]

    block:    y = act(x) * beta
              z = 1x1(act(3x3(act(3x3(act(1x1(y)))))))
              x = shortcut + alpha * gain * 2 * squeeze_excite(z) * z

              shortcut = x, or at the start of a stage 1x1(average pool(y))

There is no normalisation layer. Weights are standardised (nn/conv.py), activations are scaled to
keep the variance, and beta divides a block's input by the standard deviation that is expected for
it. The gain starts at 0, so that a new block is the identity. There is no classifier: Flamingo
takes the grid of features (435,286,116 weights for F6, the paper's 435M).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flamingo_jax.core import ranges
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.notation import Array, Float, UInt8
from flamingo_jax.core.params import param
from flamingo_jax.core.stack import Remat, Stack, layer_slice, saved_by
from flamingo_jax.nn.conv import Standardisation, ws_conv
from flamingo_jax.nn.linear import linear

# Each activation is scaled to keep unit variance on unit Gaussian input (NFNet code, base.py).
# "gelu" is the tanh form, "gelu_exact" is timm's.
ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x) * 1.7015043497085571,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False) * 1.7015043497085571,
    "relu": lambda x: jax.nn.relu(x) * 1.7139588594436646,
    "silu": lambda x: jax.nn.silu(x) * 1.7881293296813965,
}
# ImageNet's mean and deviation of red, green and blue, for pixels 0..255.
PIXEL_MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
PIXEL_STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)


@dataclasses.dataclass(frozen=True)
class NFNetConfig:
    """Shape of an NFNet; models/sizes.py has F0 to F6 and the tiny one.

    Attributes:
        widths: output channels of each stage.
        depths: blocks of each stage.
        strides: stride of each stage's first block.
        stem_channels: channels of the stem's 3x3 convolutions.
        stem_strides: their strides.
        expansion: channels inside a block, as a fraction of its output channels.
        big_width: False makes `expansion` a fraction of the block's input channels.
        group_width: channels of one group of the 3x3 convolutions; a block with fewer channels has
            one group.
        se_ratio: hidden width of squeeze-and-excite as a fraction of the channels; None = without.
        alpha: scale of every residual branch.
        skip_init: initial value of the learnt gain on the residual branch (0 in NFNet: SkipInit).
        final_multiplier: the last 1x1 convolution's width as a multiple of the last stage's; None =
            without it.
        stochastic_depth: probability of dropping the last block's branch in training; it grows
            linearly from 0 at the first block.
        activation: the non-linearity, one of ACTIVATIONS.
        weight_standardisation: "apply" at each call, or "folded": the weights are in the compute
            form (`models.frozen`) and have no gains.
        remat: what the backward pass recomputes: "full" each block; "projections" all of it but
            convolutions.
        loop: how a stage's equal blocks are applied: "scan" compiles them once; "unrolled" is for
            training on a CPU, where XLA's gradient of a convolution inside a loop takes some thirty
            times as long.
    """

    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    depths: tuple[int, ...] = (1, 2, 6, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_channels: tuple[int, ...] = (16, 32, 64, 128)
    stem_strides: tuple[int, ...] = (2, 1, 1, 2)
    expansion: float = 0.5
    big_width: bool = True
    group_width: int = 128
    se_ratio: float | None = 0.5
    alpha: float = 0.2
    skip_init: float = 0.0
    final_multiplier: float | None = 2.0
    stochastic_depth: float = 0.0
    activation: Literal["gelu", "gelu_exact", "relu", "silu"] = "gelu"
    weight_standardisation: Standardisation = "apply"
    remat: Remat = "none"
    loop: Literal["scan", "unrolled"] = "scan"

    def __post_init__(self) -> None:
        for name in ("widths", "stem_channels"):
            if not getattr(self, name):
                raise FieldError(f"{name} is (); expected at least one number.")
        sizes = ("widths", "depths", "strides", "stem_channels", "stem_strides", "group_width")
        ranges.check(self, ranges.whole(1), *sizes)
        ranges.check(self, ranges.POSITIVE, "expansion", "se_ratio", "final_multiplier")
        ranges.check(self, ranges.MODERATE, "alpha", "skip_init")
        ranges.check(self, ranges.SHARE, "stochastic_depth")
        if not len(self.widths) == len(self.depths) == len(self.strides):
            raise ValueError(
                f"NFNet needs a width, depth and stride for each stage; got {self.widths}, "
                f"{self.depths}, {self.strides}."
            )
        if len(self.stem_channels) != len(self.stem_strides):
            raise ValueError(
                f"NFNet's stem has channels {self.stem_channels} but strides {self.stem_strides}: "
                "give as many."
            )
        for width in self.widths if self.big_width else ():
            inner = int(width * self.expansion)
            if inner > self.group_width and inner % self.group_width:
                raise ValueError(
                    f"NFNet's group_width {self.group_width} does not divide the {inner} channels "
                    f"inside a block of width {width}."
                )

    @property
    def width(self) -> int:
        """E, the channels of the feature grid."""
        multiplier, last = self.final_multiplier, self.widths[-1]
        return last if multiplier is None else int(multiplier * last)

    @property
    def reduction(self) -> int:
        """Pixels for each position of the grid, along one side."""
        return int(np.prod(self.stem_strides) * np.prod(self.strides))


def normalise(
    images: UInt8[Array, "... 3"],
    dtype: DTypeLike = jnp.float32,
    *,
    mean: Float[np.ndarray, "3"] = PIXEL_MEAN,
    std: Float[np.ndarray, "3"] = PIXEL_STD,
) -> Float[Array, "... 3"]:
    """Returns (pixel - mean) / deviation (paper, model card: mean 0, variance 1).

    Computed in float32 and rounded to `dtype`.
    """
    means, deviations = (
        jnp.broadcast_to(jnp.asarray(value), images.shape) for value in (mean, std)
    )
    return ((images.astype(jnp.float32) - means) / deviations).astype(dtype)


def betas(config: NFNetConfig) -> list[list[float]]:
    """Returns 1 / the expected deviation of the input, for each block of each stage.

    A block adds alpha^2 to the variance. A stage's first block sets it to 1, because its shortcut
    is a standardised convolution of the scaled input.
    """
    values, variance = [], 1.0
    for depth in config.depths:
        stage = []
        for index in range(depth):
            stage.append(variance**-0.5)
            variance = (1.0 if index == 0 else variance) + config.alpha**2
        values.append(stage)
    return values


class NFNet(hk.Module):
    """The network without its classifier: images to a grid of features."""

    def __init__(self, config: NFNetConfig, name: str = "vision"):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self,
        images: Float[Array, "M S S 3"],
        *,
        is_training: bool = False,
        rng: Array | None = None,
    ) -> Float[Array, "M h w E"]:
        """Returns the grid of features, with a side of S / config.reduction, rounded up.

        The side is 9 at 288 pixels, 10 at 320 and 15 at 480.

        Args:
            images: pixels after `normalise`, in the dtype of the computation.
            is_training: whether blocks are dropped (stochastic depth).
            rng: one key; or one for each image, so that what is dropped does not depend on other
                images. Needed in training with config.stochastic_depth > 0.

        Raises:
            ValueError: the key is missing.
        """
        config, num_blocks, keys = self.config, sum(self.config.depths), None
        if is_training and config.stochastic_depth > 0:
            if rng is None:
                raise ValueError(
                    f"NFNet {self.name!r} has stochastic_depth={config.stochastic_depth}: pass "
                    "rng= in training."
                )
            own = rng if rng.ndim else jax.random.split(rng, len(images))
            keys = jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, num_blocks))(own), 0, 1)
        conv = functools.partial(ws_conv, standardisation=config.weight_standardisation)
        act = ACTIVATIONS[config.activation]

        x = images
        for i, (channels, stride) in enumerate(
            zip(config.stem_channels, config.stem_strides, strict=True)
        ):
            x = conv(act(x) if i else x, channels, kernel=3, stride=stride, name=f"stem_conv{i}")

        done = 0
        for i, stage in enumerate(betas(config)):
            inputs: dict[str, Any] = {"beta": jnp.array(stage)}
            if keys is not None:
                rates = config.stochastic_depth * jnp.arange(done, done + len(stage)) / num_blocks
                inputs["drop"] = (rates, keys[done : done + len(stage)])
            done += len(stage)
            x = _stage(
                x,
                inputs,
                width=config.widths[i],
                stride=config.strides[i],
                config=config,
                name=f"stage{i}",
            )

        if config.final_multiplier is not None:
            x = conv(x, config.width, kernel=1, name="final_conv")
        return act(x)


def _stage(
    x: Array, inputs: dict[str, Any], *, width: int, stride: int, config: NFNetConfig, name: str
) -> Array:
    """A first block that changes the shape, and then equal blocks with stacked weights."""

    def first(x: Array, inputs: dict[str, Any]) -> Array:
        return _block(x, **inputs, width=width, stride=stride, config=config)

    def rest(x: Array, inputs: dict[str, Any]) -> tuple[Array, None]:
        return _block(x, **inputs, width=width, stride=1, config=config), None

    depth = len(inputs["beta"])
    with hk.name_scope(name):
        with hk.name_scope("first"):
            own = (
                first if config.remat == "none" else hk.remat(first, policy=saved_by(config.remat))
            )
            x = own(x, layer_slice(inputs, 0))
        if depth == 1:
            return x
        stack = Stack(
            depth - 1, rest, name="rest", remat=config.remat, unrolled=config.loop == "unrolled"
        )
        return stack(x, layer_slice(inputs, slice(1, None)))[0]


def _block(
    x: Array,
    *,
    beta: Array,
    drop: tuple[Array, Array] | None = None,
    width: int,
    stride: int,
    config: NFNetConfig,
) -> Array:
    x = constrain(x, "images", None, None, None)
    act = ACTIVATIONS[config.activation]
    conv = functools.partial(ws_conv, standardisation=config.weight_standardisation)
    inner = int((width if config.big_width else x.shape[-1]) * config.expansion)
    groups = max(1, inner // config.group_width)

    out = act(x) * beta.astype(x.dtype)
    shortcut = x
    if stride > 1 or width != x.shape[-1]:
        pooled = hk.avg_pool(out, (1, 2, 2, 1), (1, 2, 2, 1), padding="SAME") if stride > 1 else out
        shortcut = conv(pooled, width, kernel=1, name="shortcut")

    out = conv(out, inner, kernel=1, name="conv0")
    out = conv(act(out), inner, kernel=3, stride=stride, groups=groups, name="conv1")
    out = conv(act(out), inner, kernel=3, groups=groups, name="conv1b")
    out = conv(act(out), width, kernel=1, name="conv2")
    if config.se_ratio is not None:
        out = 2 * out * _squeeze_excite(out, ratio=config.se_ratio)
    if drop is not None:
        rate, key = drop
        keep = jax.vmap(lambda own: jax.random.bernoulli(own, 1 - rate))(key)
        out = out * keep.astype(out.dtype)[:, None, None, None]
    with hk.name_scope("skip"):
        gain = param("gain", (), (), hk.initializers.Constant(config.skip_init))
    return out * (gain * config.alpha).astype(out.dtype) + shortcut


def _squeeze_excite(x: Array, *, ratio: float) -> Array:
    """One factor in 0..1 for each image and channel, from all channels' means (Hu et al. 2018)."""
    axes, hidden = ("vision", "vision"), max(1, int(x.shape[-1] * ratio))
    means = jnp.mean(x, axis=(1, 2))
    squeezed = jax.nn.relu(linear(means, (hidden,), axes=axes, bias=True, name="squeeze"))
    factors = jax.nn.sigmoid(linear(squeezed, x.shape[-1:], axes=axes, bias=True, name="excite"))
    return factors[:, None, None, :]
