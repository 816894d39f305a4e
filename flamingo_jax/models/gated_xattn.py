"""GATED XATTN-DENSE: the trained layers between the frozen blocks of the LM (paper, 2.2, Figure 4).

    text x [B T D] --- LN --> query [B T H K] --+
                                                v
    media [M R D] -- LN --> key, value --> attend own image --> out [B T D]

    x = x + tanh(alpha_attention) * out
    x = x + tanh(alpha_dense) * FFW(LN(x))          FFW: D -> 4D, squared ReLU, 4D -> D

Both gates are 0 at the start, so that the model starts as the language model, bit for bit. A token
attends the R latents of one image, image phi (`media_index`). With phi = 0 the attention adds
exactly 0 (paper, 2.3, A.1.3). The media have the LM's width D. Only with this width does the number
of weights agree with Table 5. `XattnConfig` has more options than Table 4: those of the ablations
(Table 3) and of the public re-implementations. The defaults are the paper's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core import ranges
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.params import param
from flamingo_jax.models.lm import residual
from flamingo_jax.models.media_context import (
    Attends,
    MediaContext,
    first_images,
    gather_media,
    real_latents,
    seen_at_the_end,
)
from flamingo_jax.nn.attention import attend_own_image, attend_own_image_chunked
from flamingo_jax.nn.feedforward import Activation, feed_forward
from flamingo_jax.nn.linear import Linear
from flamingo_jax.nn.norm import EPSILON, layer_norm, rms_norm, standardise


@dataclasses.dataclass(frozen=True)
class XattnConfig:
    """The places of the layers between the LM's blocks, and their options.

    Attributes:
        every: there is a layer before each `every`-th block of the LM (1, 4, 7 for 3B, 9B, 80B).
        offset: number of the block that the first layer comes before.
        num_heads: H; 0 = the LM's.
        num_kv_heads: G, heads of keys and values; 0 = num_heads.
        head_dim: K; 0 = D / H.
        mlp_ratio: hidden width of the dense part, in widths D.
        activation: of the dense part (Table 4: squared ReLU).
        mlp_width: M, hidden width of the dense part; 0 = mlp_ratio * D.
        media: input of keys and values. "language": the visual tokens, mapped to the LM's width.
            "resampler": the resampler's output, unchanged; there is no weight flamingo/media.
        media_norm: whether each layer has a LayerNorm on the media.
        norm: of the text, before attention and dense part.
        norm_epsilon: of all norms.
        qk_norm: whether each head's queries and keys have an RMSNorm (over K).
        gate: "scalar", one alpha for attention and one for the dense part; "vector", one for each
            channel of D; or "none", factors of 1, so that the model does not start as the language
            model (Table 3, row iii).
        dense: whether the layer has a dense part. Without it, and with its gate, it is the "vanilla
            cross-attention" of Table 3, row iv.
        attend: the images that a token attends: "last", image phi alone; "all", images 1..phi
            (Table 10, row ii); or "run", image phi and those directly before it, with no text
            between their tags (Llama 3.2). A tag is then one token.
        unseen: what attention gives a token with phi = 0: exactly 0, or the mean over all images of
            its sequence (IDEFICS as first published; a sequence without images gets 0).
        skip_unseen: whether the dense part, too, leaves a token with phi = 0 as it is. Text without
            images then gives what the language model gives (Llama 3.2).
        grafted_layers: 0 = the layers are between the LM's blocks. Else there is none between them:
            the LM runs as it is, and on top of it a trained stack runs so many times a layer and a
            new block like the LM's ("grafting", Table 3, row iv; `models.flamingo.graft`). Then
            `every` and `offset` mean nothing, and have their defaults.
    """

    every: int = 1
    offset: int = 0
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    mlp_ratio: int = 4
    activation: Activation = "squared_relu"
    mlp_width: int = 0
    media: Literal["language", "resampler"] = "language"
    media_norm: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = EPSILON
    qk_norm: bool = False
    gate: Literal["scalar", "vector", "none"] = "scalar"
    dense: bool = True
    attend: Attends = "last"
    unseen: Literal["zero", "average"] = "zero"
    skip_unseen: bool = False
    grafted_layers: int = 0

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1), "every", "mlp_ratio")
        ranges.check(self, ranges.whole(0), "offset", "num_heads", "head_dim", "mlp_width")
        ranges.check(self, ranges.whole(0), "grafted_layers", "num_kv_heads")
        ranges.check(self, ranges.EPSILON, "norm_epsilon")
        if self.num_heads and self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise FieldError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}: "
                "expected as many query heads for each head of keys and values."
            )
        if self.offset >= self.every:
            raise ValueError(
                f"xattn: expected every >= 1 and 0 <= offset < every, got every={self.every}, "
                f"offset={self.offset}."
            )
        if self.attend != "last" and self.unseen == "average":
            raise FieldError(
                f"attend is {self.attend!r} and unseen is 'average': both change what a token "
                "attends, and no model has both. Expected attend = 'last', or unseen = 'zero'."
            )
        if self.skip_unseen and (self.unseen == "average" or not self.dense):
            raise FieldError(
                f"skip_unseen is True, unseen is {self.unseen!r} and dense is {self.dense}: it "
                "leaves a token without an image as it is, and so there is no average for it, and "
                "a dense part that it skips. Expected unseen = 'zero' and dense = True; or "
                "skip_unseen = False."
            )
        if self.grafted_layers and (self.every, self.offset) != (1, 0):
            raise FieldError(
                f"grafted_layers is {self.grafted_layers}, every is {self.every} and offset is "
                f"{self.offset}: grafted layers are on top of the language model, and not between "
                "its blocks. Expected every = 1 and offset = 0; or grafted_layers = 0."
            )

    def num_layers(self, lm_layers: int) -> int:
        """Returns the number of layers for an LM of `lm_layers` blocks."""
        return self.grafted_layers or -(-(lm_layers - self.offset) // self.every)


class GatedXattn(hk.Module):
    """One GATED XATTN-DENSE layer."""

    def __init__(
        self, config: XattnConfig, num_heads: int, context: MediaContext, *, name: str = "block"
    ):
        """Describes the layer.

        Args:
            config: of all layers.
            num_heads: the LM's; taken if the config has 0.
            context: the visual inputs.
            name: module name.
        """
        super().__init__(name=name)
        self.config, self.context = config, context
        self.num_heads = config.num_heads or num_heads

    def __call__(
        self, x: Float[Array, "B T D"], cached: Any = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Applies the layer.

        Args:
            x: the text.
            cached: {"key", "value": [B, N, R, G, K]} while decoding; N = 1, the last image, unless
                tokens attend several. Also {"seen": bool[B, N, R]}, the latents that new tokens
                attend, if they are not all of them.

        Returns:
            (x, what `cached` will be if the context says to keep it, else None).
        """
        config = self.config
        kind = layer_norm if config.norm == "layer" else rms_norm
        norm = functools.partial(kind, epsilon=config.norm_epsilon)
        x, kept = residual(x), None
        if not self.context.is_empty:
            attended, kept = self._attend(norm(x, name="query_norm"), cached)
            x = checkpoint_name(
                residual(x + _gated("attention_gate", attended, config)), "attended"
            )
        if not config.dense or (config.skip_unseen and self.context.is_empty):
            return x, kept
        hidden = feed_forward(
            norm(x, name="mlp_norm"),
            config.mlp_width or config.mlp_ratio * x.shape[-1],
            activation=config.activation,
            bias=False,
            name="mlp",
        )
        if config.skip_unseen:
            hidden = jnp.where(self.context.media_index[:, :, None] > 0, hidden, 0)
        return residual(x + _gated("dense_gate", hidden, config)), kept

    @hk.name_like("__call__")
    def _attend(self, y: Array, cached: Any) -> tuple[Array, Any]:
        width, attends = y.shape[-1], self.config.attend
        shape = (self.num_heads, self.config.head_dim or width // self.num_heads)
        q = Linear(shape, axes=("embed", "heads", "head_dim"), name="query")(y)
        if self.config.qk_norm:
            q = self._norm_heads(q, "query_head_norm")
        q = checkpoint_name(constrain(q, "batch", "length", "heads", "head_dim"), "query")
        index, first, real = self.context.media_index, self.context.first, self.context.real
        if cached is None:
            key, value = self._keys_and_values((self.config.num_kv_heads or shape[0], shape[1]))
        else:
            key, value, real = cached["key"], cached["value"], cached.get("seen")
            if attends == "last":
                index = jnp.minimum(index, 1)
            elif attends == "run":  # `real` says which images
                index = jnp.where(index > 0, key.shape[1], 0)
        if attends == "all" or (attends == "run" and cached is not None):
            first = jnp.ones_like(index)
        # While decoding, only sequences without images have phi = 0: there is nothing to average.
        average = None
        if self.config.unseen == "average" and self.context.slot is not None:
            average = self.context.slot >= 0
        whole = self.context.chunk is None or cached is not None or average is not None
        if whole or attends == "all":
            out = attend_own_image(q, key, value, index, average, first=first, real=real)
        else:
            assert self.context.chunk is not None
            tokens, span = self.context.chunk
            out = attend_own_image_chunked(
                q, key, value, index, chunk=tokens, span=span, first=first, real=real
            )
        out = constrain(out, "batch", "length", "heads", "head_dim")
        out = Linear((width,), axes=("heads", "head_dim", "embed"), num_in=2, name="out")(out)
        if not self.context.keep:
            return out, None
        kept = {"key": key, "value": value}
        if attends == "run":
            assert first is not None  # it is, by `as_layers_take` or from the cache
            kept["seen"] = seen_at_the_end(index, first, real, key.shape[:3])
        elif real is not None:
            kept["seen"] = real
        if attends != "last":
            return out, kept
        last = jnp.maximum(jnp.max(index, axis=1) - 1, 0)
        pick = jax.vmap(lambda row, n: jax.lax.dynamic_slice_in_dim(row, n, 1, axis=0))
        return out, {name: pick(rows, last) for name, rows in kept.items()}

    @hk.name_like("__call__")
    def _keys_and_values(self, shape: tuple[int, int]) -> tuple[Array, Array]:
        """Returns keys and values [B, N, R, G, K] of each sequence's visual inputs.

        Each row of the pool is projected once. Keys and values share one LayerNorm (v1, 3.1.2), or
        have none. Its statistics are the same in all layers: the pool is standardised already, and
        scale and offset are multiplied into the projection:
        (x * scale + offset) W = x (scale W) + offset W.
        """
        pool, slot = self.context.pool, self.context.slot
        if pool is None or slot is None:
            raise ValueError(
                "Cross-attention needs visual inputs (a pool and its slots) or cached "
                "keys and values."
            )
        config, width = self.config, pool.shape[-1:]
        stream = "embed" if config.media == "language" else "vision"
        heads = "kv_heads" if config.num_kv_heads else "heads"
        if config.media_norm:
            with hk.name_scope("media_norm"):
                scale = param("scale", width, (stream,), jnp.ones).astype(jnp.float32)
                offset = param("offset", width, (stream,), jnp.zeros).astype(pool.dtype)

        def project(name: str) -> Array:
            with hk.name_scope(name):
                init = hk.initializers.TruncatedNormal(width[0] ** -0.5)
                w = param("w", (*width, *shape), (stream, heads, "head_dim"), init)
            if config.media_norm:
                scaled = (w.astype(jnp.float32) * scale[:, None, None]).astype(pool.dtype)
                scaled = constrain(scaled, stream, heads, "head_dim")
                shift = jnp.tensordot(offset, w.astype(pool.dtype), axes=1)
                rows = jnp.tensordot(pool, scaled, axes=1) + shift[None, None]
            else:
                rows = jnp.tensordot(pool, w.astype(pool.dtype), axes=1)
            if config.qk_norm and name == "key":
                rows = self._norm_heads(rows, "key_head_norm")
            rows = checkpoint_name(constrain(rows, "media", "latents", heads, "head_dim"), name)
            return gather_media(rows, slot, self.context.num_shards, heads)

        return project("key"), project("value")

    @hk.name_like("__call__")
    def _norm_heads(self, y: Float[Array, "... K"], name: str) -> Float[Array, "... K"]:
        return rms_norm(y, axis_name="head_dim", epsilon=self.config.norm_epsilon, name=name)


def _gated(name: str, x: Float[Array, "B T D"], config: XattnConfig) -> Float[Array, "B T D"]:
    """Returns tanh(alpha) x, what a layer adds; alpha is 0 at the start."""
    if config.gate == "none":
        return x
    if config.gate == "scalar":
        return jnp.tanh(param(name, (), (), jnp.zeros)).astype(x.dtype) * x
    alpha = param(name, x.shape[-1:], ("embed",), jnp.zeros)
    return jnp.broadcast_to(jnp.tanh(alpha).astype(x.dtype), x.shape) * x


def normalised_media(pool: Float[Array, "M R W"], config: XattnConfig) -> Float[Array, "M R W"]:
    """Returns the visual tokens as the layers take them: standardised if they have a LayerNorm."""
    return standardise(pool, epsilon=config.norm_epsilon) if config.media_norm else pool


def as_layers_take(
    context: MediaContext,
    config: XattnConfig,
    segment: Int[Array, "B T"] | None = None,
    *,
    has_padding: bool = False,
) -> MediaContext:
    """Returns the visual inputs as the layers take them, with what each token attends of them.

    Args:
        context: with latents as `FlamingoModule.encode` returns them; unchanged without any.
        config: of the layers.
        segment: document of each token, in training.
        has_padding: whether latents that are 0 are padding.
    """
    pool, slot = context.pool, context.slot
    if pool is None or slot is None:
        return context
    if has_padding:
        context = context._replace(real=real_latents(pool, slot, context.num_shards))
    if config.attend == "run":
        context = context._replace(first=first_images(context.media_index, segment))
    return context._replace(pool=normalised_media(pool, config))
