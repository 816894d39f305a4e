"""Perceiver Resampler: any number of features become R visual tokens (paper, 2.1, A.1.1, Figure 5).

    features [M F P E] --linear, + time embedding [F W], flatten--> x [M F*P W]
    latents [R W] --repeat--> [M R W]

    num_layers x:   latents = latents + attention(q = latents, kv = [x, latents])
                    latents = latents + ffw(latents)                        --> [M R W]

The paper gives two head sizes. Its second version has heads of 96 (= W / H), and its first says
that all blocks have "a same constant key and value size of 128". Only 128 gives the 194M weights of
Table 5 (193.7M; 96 gives 174.8M), with the linear map from the 3072 channels of NFNet-F6. So
`models.sizes` calls 128 "paper" and 96 "paper_v2_head96". The feed-forward layers have biases and
the attention's projections have none. The language model needs the same choice to reach its
published number of weights.

The paper compares it with a Transformer and with an MLP (Table 3, row vi) and does not describe
them. Ours give R visual tokens as well:

    transformer   all of [x, latents] attend each other and pass the feed-forward layers; the R
                  latents come out
    mlp           the feed-forward layers alone, on the features of each frame; then the mean over
                  the frames, and their grid is resized to sqrt(R) x sqrt(R)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core import ranges
from flamingo_jax.core.config import ConfigError, FieldError
from flamingo_jax.core.notation import Array, Bool, Float
from flamingo_jax.core.params import param
from flamingo_jax.core.stack import Remat, Stack
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.embed import interpolate_time
from flamingo_jax.nn.feedforward import Activation, feed_forward
from flamingo_jax.nn.linear import linear
from flamingo_jax.nn.norm import EPSILON, layer_norm


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Shape of a Perceiver Resampler (Table 4's column; models/sizes.py).

    Attributes:
        kind: "perceiver" is the paper's; "transformer" and "mlp" are those that it compares.
        num_layers: blocks of attention and feed-forward.
        width: W, of features inside, latents and output.
        num_heads: H.
        head_dim: K, size of one head's keys and values.
        num_latents: R, the visual tokens that come out for each image or video.
        input_projection: whether a linear map takes the features to width W; without it their width
            must be W.
        num_time_embeddings: frames in training; other numbers of frames are interpolated. 0 = no
            time embeddings.
        mlp_ratio: hidden width of the feed-forward layer, in widths.
        activation: of the feed-forward layer.
        attention_bias: whether the projections of the attention have biases.
        mlp_bias: whether the feed-forward layers have biases.
        qk_norm: whether each head's queries and keys have a LayerNorm (over K).
        final_norm: whether there is a LayerNorm at the end; the paper mentions none, OpenFlamingo
            has one.
        epsilon: of all norms.
        remat: "full" recomputes each block in the backward pass.
    """

    kind: Literal["perceiver", "transformer", "mlp"] = "perceiver"
    num_layers: int = 6
    width: int = 1536
    num_heads: int = 16
    head_dim: int = 128
    num_latents: int = 64
    input_projection: bool = True
    num_time_embeddings: int = 8
    mlp_ratio: int = 4
    activation: Activation = "squared_relu"
    attention_bias: bool = False
    mlp_bias: bool = True
    qk_norm: bool = False
    final_norm: bool = False
    epsilon: float = EPSILON
    remat: Remat = "none"

    def __post_init__(self) -> None:
        sizes = ("num_layers", "width", "num_heads", "head_dim", "num_latents", "mlp_ratio")
        ranges.check(self, ranges.whole(1), *sizes)
        ranges.check(self, ranges.whole(0), "num_time_embeddings")
        ranges.check(self, ranges.EPSILON, "epsilon")
        if self.kind == "mlp" and math.isqrt(self.num_latents) ** 2 != self.num_latents:
            raise FieldError(
                f"kind is 'mlp' and num_latents is {self.num_latents}; expected a square, such as "
                "64, the points of a grid of 8 x 8."
            )


class Resampler(hk.Module):
    """Turns the vision encoder's features into R visual tokens; the features are not updated."""

    def __init__(self, config: ResamplerConfig, name: str = "resampler"):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self, features: Float[Array, "M F P E"], frame_mask: Bool[Array, "M F"]
    ) -> Float[Array, "M R W"]:
        """Returns the visual tokens.

        There is one embedding for each frame. There is none for the position within the image: the
        paper saw no gain from it, since the encoder's convolutions know the position. An image is a
        video of one frame.

        Args:
            features: the encoder's grid for each frame, flattened, in the dtype of the computation.
            frame_mask: False for frames that are padding, which no latent attends.

        Raises:
            ValueError: the features do not have width W, and there is no input projection.
        """
        config = self.config
        _, num_frames, _, width = features.shape
        init = hk.initializers.RandomNormal(0.02)

        x = features
        if config.input_projection:
            x = linear(features, (config.width,), axes=("vision", "embed"), bias=True, name="input")
        elif width != config.width:
            raise ConfigError(
                f"Resampler: the vision encoder's features are {width} wide, the resampler "
                f"{config.width}, and there is no input projection: set resampler.width to the "
                "encoder's, or resampler.input_projection=True."
            )
        if config.num_time_embeddings:
            shape = (config.num_time_embeddings, config.width)
            time = param("time_embeddings", shape, ("frames", "embed"), init)
            x = x + interpolate_time(time, num_frames).astype(x.dtype)[None, :, None]
        x = x.reshape(x.shape[0], -1, config.width)
        if config.kind == "mlp":
            out = _pooled(self._blocks(_without_attention, x), frame_mask, config.num_latents)
        else:
            out = self._read(x, frame_mask)
        if config.final_norm:
            out = layer_norm(out, epsilon=config.epsilon, name="final_norm")
        return out

    @hk.name_like("__call__")
    def _read(
        self, x: Float[Array, "M S W"], frame_mask: Bool[Array, "M F"]
    ) -> Float[Array, "M R W"]:
        """Returns what the latents have read from the features of all frames."""
        config = self.config
        num_inputs, num_features, _ = x.shape
        init = hk.initializers.RandomNormal(0.02)
        latents = param("latents", (config.num_latents, config.width), ("latents", "embed"), init)
        latents = jnp.broadcast_to(latents.astype(x.dtype)[None], (num_inputs, *latents.shape))

        visible = jnp.repeat(frame_mask, num_features // frame_mask.shape[1], axis=1)
        visible = jnp.pad(visible, ((0, 0), (0, config.num_latents)), constant_values=True)
        if config.kind == "perceiver":
            return self._blocks(functools.partial(_attention, x, visible), latents)
        everything = jnp.concatenate([x, latents], axis=1)
        read = self._blocks(functools.partial(_self_attention, visible), everything)
        return read[:, -config.num_latents :]

    @hk.name_like("__call__")
    def _blocks(self, added: Callable[[Array, ResamplerConfig], Array], y: Array) -> Array:
        """Applies the blocks: what `added` returns, if anything, then a feed-forward layer."""
        config = self.config

        def block(y: Array, _: None) -> tuple[Array, None]:
            y = added(y, config)
            hidden = layer_norm(y, epsilon=config.epsilon, name="ffw_norm")
            hidden = feed_forward(
                hidden,
                config.mlp_ratio * config.width,
                activation=config.activation,
                bias=config.mlp_bias,
                batch="images",
                axis="latent_mlp",
                name="ffw",
            )
            return y + hidden, None

        return Stack(config.num_layers, block, name="layers", remat=config.remat)(y)[0]


def _without_attention(x: Array, config: ResamplerConfig) -> Array:
    """The block of an MLP has no attention."""
    return x


def _pooled(
    x: Float[Array, "M S W"], frame_mask: Bool[Array, "M F"], num_latents: int
) -> Float[Array, "M R W"]:
    """Returns the mean over the frames, on a grid of R points.

    Raises:
        ConfigError: the P features of a frame are no square grid.
    """
    (num_inputs, num_frames), width = frame_mask.shape, x.shape[-1]
    num_patches = x.shape[1] // num_frames
    side, new = math.isqrt(num_patches), math.isqrt(num_latents)
    if side * side != num_patches:
        raise ConfigError(
            f"resampler.kind is 'mlp', and the vision encoder gives {num_patches} features for a "
            "frame; expected a square grid: set data.image_size accordingly, or another kind."
        )
    weight = frame_mask.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)
    frames = x.reshape(num_inputs, num_frames, num_patches, width)
    mean = jnp.einsum("mfpw,mf->mpw", frames, weight.astype(x.dtype))
    grid = mean.reshape(num_inputs, side, side, width)
    resized = jax.image.resize(grid, (num_inputs, new, new, width), "linear", antialias=True)
    return resized.reshape(num_inputs, num_latents, width)


def _attention(
    x: Float[Array, "M S W"],
    visible: Bool[Array, "M Sx"],
    latents: Float[Array, "M R W"],
    config: ResamplerConfig,
) -> Float[Array, "M R W"]:
    """The latents attend the features and themselves; each of the two has a LayerNorm before."""
    queries = layer_norm(latents, epsilon=config.epsilon, name="latents_norm")
    features = layer_norm(x, epsilon=config.epsilon, name="media_norm")
    attended = jnp.concatenate([features, queries], axis=1)
    return latents + _attended(queries, attended, visible, config)


def _self_attention(
    visible: Bool[Array, "M Sx"], x: Float[Array, "M Sx W"], config: ResamplerConfig
) -> Float[Array, "M Sx W"]:
    """Features and latents attend each other, after a LayerNorm."""
    y = layer_norm(x, epsilon=config.epsilon, name="attention_norm")
    return x + _attended(y, y, visible, config)


def _attended(
    queries: Float[Array, "M T W"],
    attended: Float[Array, "M Sx W"],
    visible: Bool[Array, "M Sx"],
    config: ResamplerConfig,
) -> Float[Array, "M T W"]:
    """Returns the output of multi-head attention to what is visible."""
    axes, bias = ("embed", "latent_heads", "head_dim"), config.attention_bias
    heads = (config.num_heads, config.head_dim)
    q = linear(queries, heads, axes=axes, bias=bias, name="query")
    k = linear(attended, heads, axes=axes, bias=bias, name="key")
    v = linear(attended, heads, axes=axes, bias=bias, name="value")
    if config.qk_norm:
        q, k = (
            layer_norm(y, axis_name="head_dim", epsilon=config.epsilon, name=name)
            for y, name in ((q, "query_head_norm"), (k, "key_head_norm"))
        )
    mask_shape = (*queries.shape[:2], visible.shape[1])
    out = attend(q, k, v, jnp.broadcast_to(visible[:, None, :], mask_shape))
    return linear(
        out,
        queries.shape[-1:],
        num_in=2,
        axes=("latent_heads", "head_dim", "embed"),
        bias=bias,
        name="output",
    )
