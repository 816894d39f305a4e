"""The LM's self-attention, with its masks, its positions and its cache.

    x [B T D] --> q [B T H K]
              --> k, v [B T G K] --(in decoding)--> cache [B S G K]
    softmax(q k^T / sqrt(K) + positions) v --> out [B T D]

Training attends x itself. Decoding attends the cache, with the new keys and values in it.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core.axes import constrain, on_cpu
from flamingo_jax.core.notation import Array, Bool, Float, Int
from flamingo_jax.core.params import param
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.core.stack import Layers, is_unrolled, layer_slice
from flamingo_jax.core.trees import Params
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.nn import embed, masks
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.linear import fused_linear, linear, product
from flamingo_jax.nn.lora import adapted
from flamingo_jax.nn.norm import layer_norm, rms_norm

_BLOCK = 256  # queries


class Context(NamedTuple):
    """What all blocks share.

    Attributes:
        positions: of each token within its document.
        mask: True where a token may attend a key.
        distances: position of the token minus position of the key.
        segment: document of each token, 0 = padding; None with a cache.
        aligned: whether query i and key i are at the same position.
        from_start: whether a cache was empty, so that token i is at position i.
    """

    positions: Int[Array, "B T"]
    mask: Bool[Array, "B T S"]
    distances: Int[Array, "B T S"]
    segment: Int[Array, "B T"] | None
    aligned: bool
    from_start: bool = False


def packed_context(segment: Int[Array, "B L"]) -> Context:
    """Returns the context of training: packed documents, each of which attends itself causally."""
    length = segment.shape[1]
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], segment.shape)
    mask = masks.causal(index, length) & masks.same_segment(segment)
    return Context(
        masks.positions_in_segment(segment), mask, _distances(index, length), segment, aligned=True
    )


def cached_context(
    positions: Int[Array, "B T"], cache_length: int, *, is_empty: bool = False
) -> Context:
    """Returns the context of prefill and decoding: a key's row in the cache is its position.

    Args:
        positions: of the tokens.
        cache_length: rows of the cache.
        is_empty: `models.cache.Cache.is_empty`.
    """
    return Context(
        positions,
        masks.causal(positions, cache_length),
        _distances(positions, cache_length),
        None,
        aligned=False,
        from_start=is_empty,
    )


def _distances(positions: Int[Array, "B T"], num_keys: int) -> Int[Array, "B T S"]:
    return positions[:, :, None] - jnp.arange(num_keys, dtype=positions.dtype)[None, None, :]


class SelfAttention(hk.Module):
    """Causal self-attention."""

    def __init__(
        self,
        config: LMConfig,
        context: Context,
        is_global: Bool[Array, ""] | None = None,
        *,
        name: str,
    ):
        """Describes the layer.

        Args:
            config: of the model.
            context: positions and mask.
            is_global: whether this layer attends all tokens before in spite of `sliding_window`;
                None = it does not.
            name: module name.
        """
        super().__init__(name=name)
        self.config, self.context, self.is_global = config, context, is_global

    def __call__(
        self, x: Float[Array, "*n B T D"], cache: Any
    ) -> tuple[Float[Array, "*n B T D"], Any]:
        """Attends x itself, or the cache after x has been written into it.

        Args:
            x: the tokens, [B, T, D]; or copies of them [n, B, T, D] (`models.halves`).
            cache: this layer's; None in training.

        Returns:
            (out, new rows for this layer's cache): out is like x; rows are {name: [B, T, ...]}, or
            None without a cache.
        """
        config, context = self.config, self.context
        q, k, v = self._project(x)
        rows: dict[str, Array] | None = None if cache is None else {}
        if config.qkv_conv_width:
            q, k, v, rows = self._convolve(q, k, v, cache)
        if config.qk_norm or config.head_norm:
            q = self._norm_heads(q, "heads", "query_norm")
            k = self._norm_heads(k, "kv_heads", "key_norm")
        if config.position == "rotary":
            q, k = self._rotate(q), self._rotate(k)
        if cache is not None:
            rows = {
                **(rows or {}),
                "key": k.astype(cache["key"].dtype),
                "value": v.astype(cache["value"].dtype),
            }
            k, v = (_write(cache[name], rows[name], context.positions) for name in ("key", "value"))
        table = None if cache is None else cache.get("relative")
        q, bias = self._position_bias(q, k.shape[1], table)
        if config.score_size:  # `attend` divides by the root of the head size
            q = q * jnp.asarray((config.head_size / config.score_size) ** 0.5, q.dtype)
        attended = (_attend_in_blocks if context.from_start and on_cpu() else attend)(
            q, k, v, self._mask(), bias, cap=config.score_cap
        )
        out = constrain(attended, "batch", "length", "heads", "head_dim")
        # Else the compiler transposes it again for each tile of the product.
        out = jax.lax.optimization_barrier(out)
        axes = ("heads", "head_dim", "embed")
        y = linear(
            out, (config.width,), axes=axes, num_in=2, bias=config.attention_bias, name="out"
        )
        return adapted(y, out, config.lora, axes=axes, num_in=2, name="out"), rows

    @hk.name_like("__call__")
    def _mask(self) -> Bool[Array, "B T S"]:
        mask, window = self.context.mask, self.config.sliding_window
        if not window:
            return mask
        near = self.context.distances < window
        return mask & (near if self.is_global is None else near | self.is_global)

    @hk.name_like("__call__")
    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        config = self.config
        names: dict[str, str] = {"query": "heads", "key": "kv_heads", "value": "kv_heads"}

        def finished(y: Array, name: str) -> Array:
            own = adapted(y, x, config.lora, axes=("embed", names[name], "head_dim"), name=name)
            return checkpoint_name(own, name)

        if config.fused:
            qkv = fused_linear(
                x,
                (3, config.num_heads, config.head_size),
                axes=(None, "heads", "head_dim", "embed"),
                name="qkv",
            )
            qkv = constrain(qkv, "batch", "length", None, "heads", "head_dim")
            q, k, v = (finished(qkv[:, :, i], name) for i, name in enumerate(names))
            return q, k, v

        def project(heads: int, axis: str, name: str) -> Array:
            shape, axes = (heads, config.head_size), ("embed", axis, "head_dim")
            y = linear(
                x, shape, axes=axes, bias=config.attention_bias or config.qkv_bias, name=name
            )
            return finished(constrain(y, "batch", "length", axis, "head_dim"), name)

        q = project(config.num_heads, "heads", "query")
        k, v = (project(config.kv_heads, "kv_heads", name) for name in ("key", "value"))
        return q, k, v

    @hk.name_like("__call__")
    def _position_bias(
        self, q: Array, num_keys: int, r: Array | None
    ) -> tuple[Array, Array | None]:
        """(q with its content bias, what positions add to the scores); r: from `distance_table`."""
        config = self.config
        if config.position == "alibi":
            return q, embed.alibi_bias(config.num_heads, self.context.distances)
        if config.position != "relative":
            return q, None
        shape = (config.num_heads, config.head_size)
        biases = (
            param(name, shape, ("heads", "head_dim"), jnp.zeros).astype(q.dtype)
            for name in ("content_bias", "position_bias")
        )
        content, position = (jnp.broadcast_to(bias, q.shape) for bias in biases)
        if r is None:
            r = self._project_distances(embed.sinusoids(num_keys, config.width).astype(q.dtype))
        if self.context.aligned:
            return q + content, embed.aligned_relative_bias(q + position, r)
        return q + content, embed.relative_bias(q + position, r, self.context.distances)

    @hk.name_like("__call__")
    def _project_distances(self, r: Float[Array, "S D"]) -> Float[Array, "S H K"]:
        shape = (self.config.num_heads, self.config.head_size)
        if self.config.fused:
            return fused_linear(r, shape, axes=("heads", "head_dim", "embed"), name="relative")
        return linear(r, shape, axes=("embed", "heads", "head_dim"), name="relative")

    @hk.name_like("__call__")
    def _rotate(self, y: Array) -> Array:
        config = self.config
        angles = functools.partial(
            embed.rotary_frequencies, config.head_size, fraction=config.rotary_fraction
        )
        frequencies = angles(base=config.rotary_base, scaling=config.rotary_scaling)
        if config.local_rotary_base:
            local = angles(base=config.local_rotary_base)
            frequencies = (
                local if self.is_global is None else jnp.where(self.is_global, frequencies, local)
            )
        return embed.rotary(y, self.context.positions, frequencies)

    @hk.name_like("__call__")
    def _norm_heads(self, y: Array, axis: str, name: str) -> Array:
        """Norms the features of each head, or those of all heads together."""
        if self.config.head_norm:
            return normalised(self.config, y, axis_name="head_dim", name=name)
        flat = y.reshape(*y.shape[:2], -1)
        return normalised(self.config, flat, axis_name=axis, name=name).reshape(y.shape)

    @hk.name_like("__call__")
    def _convolve(
        self, q: Array, k: Array, v: Array, cache: Any
    ) -> tuple[Array, Array, Array, Any]:
        """Mixes each channel of q, k, v with its last tokens; also returns new rows for the cache.

        The cache keeps the channels as they are before the convolution.
        """
        parts = [y.reshape(*y.shape[:2], -1) for y in (q, k, v)]
        raw = jnp.concatenate(parts, axis=-1)
        lags = range(1, self.config.qkv_conv_width)
        rows = None
        if cache is None:
            before = [embed.shifted(raw, lag, self.context.segment) for lag in lags]
        else:
            rows = {"raw": raw.astype(cache["raw"].dtype)}
            known = _write(cache["raw"], rows["raw"], self.context.positions)
            before = [_read(known, self.context.positions - lag) for lag in lags]
        mixed = []
        for y, shape, name, axis in zip(
            parts,
            (q, k, v),
            ("query", "key", "value"),
            ("heads", "kv_heads", "kv_heads"),
            strict=True,
        ):
            kernel_shape = (self.config.qkv_conv_width, *shape.shape[2:])
            kernel = param(
                f"{name}_kernel", kernel_shape, ("kernel", axis, "head_dim"), _identity_kernel
            )
            start = (
                0
                if name == "query"
                else parts[0].shape[-1] + (parts[1].shape[-1] if name == "value" else 0)
            )
            own = [lag[..., start : start + y.shape[-1]] for lag in before]
            mixed.append(
                embed.causal_convolution(y, kernel.reshape(len(kernel), -1), own).reshape(
                    shape.shape
                )
            )
        return mixed[0], mixed[1], mixed[2], rows


def normalised(
    config: LMConfig, x: Float[Array, "... D"], *, axis_name: str = "embed", name: str
) -> Float[Array, "... D"]:
    """Applies the norm that the config names."""
    if config.norm == "layer":
        return layer_norm(
            x, axis_name=axis_name, epsilon=config.norm_epsilon, bias=config.norm_bias, name=name
        )
    return rms_norm(
        x,
        axis_name=axis_name,
        epsilon=config.norm_epsilon,
        from_one=config.norm_from_one,
        name=name,
    )


def _attend_in_blocks(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B T S"],
    bias: Array | None,
    *,
    cap: float,
) -> Float[Array, "B T H K"]:
    """Computes `attend` where query i attends no key after key i, without most of these keys.

    A CPU takes half the time: it computes fewer scores, and those of a block stay in its caches.
    """
    length = q.shape[1]
    if length <= _BLOCK:
        return attend(q, k, v, mask, bias, cap=cap)
    blocks = []
    for first in range(0, length, _BLOCK):
        end = min(first + _BLOCK, length)
        own = slice(first, end)
        own_bias = None if bias is None else bias[:, :, own, :end]
        blocks.append(
            attend(q[:, own], k[:, :end], v[:, :end], mask[:, own, :end], own_bias, cap=cap)
        )
    return jnp.concatenate(blocks, axis=1)


def _identity_kernel(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new convolution returns the current token."""
    return jnp.zeros(shape, dtype).at[0].set(1.0)


def written(
    cache: dict[str, Any], rows: dict[str, Any], positions: Int[Array, "B T"]
) -> dict[str, Any]:
    """Returns the cache with the new rows of all layers written into it.

    The layers return their new rows only. If a scan over the layers took the cache and returned it,
    it would copy all of it for each decoded token.

    Args:
        cache: {name: [layers, B, S, ...]}, or `core.stack.Layers` of [B, S, ...].
        rows: {name: [layers, B, T, ...]} as the layers return them, or `Layers` of them.
        positions: of the rows; consecutive.
    """
    # Each layer has written the same rows for its attention: the compiler does it once, in place.
    if is_unrolled(cache):
        pairs = {name: zip(cache[name], new, strict=True) for name, new in rows.items()}
        return {
            name: Layers(_write(old, new, positions) for old, new in layers)
            for name, layers in pairs.items()
        }
    write = jax.vmap(_write, in_axes=(0, 0, None))
    return {name: write(cache[name], new, positions) for name, new in rows.items()}


def _write(cache: Array, new: Array, positions: Array) -> Array:
    """Puts T new rows into each cache row at its positions, which are consecutive."""
    put = lambda row, x, start: jax.lax.dynamic_update_slice_in_dim(
        row, x.astype(row.dtype), start, axis=0
    )
    return jax.vmap(put)(cache, new, positions[:, 0])


def _read(cache: Array, positions: Array) -> Array:
    """Reads rows of the cache by position; 0 before the start."""
    rows = jnp.take_along_axis(cache, jnp.maximum(positions, 0)[:, :, None], axis=1)
    return jnp.where((positions >= 0)[:, :, None], rows, 0)


def distance_table(
    config: LMConfig, blocks: Params, length: int, dtype: Any
) -> Float[Array, "layers S H K"] | Layers | None:
    """Returns the projected embedding of each distance in each layer, for relative positions.

    It depends on the weights alone. Without it each decoded token would project all distances again
    in every layer: 2 S D^2 FLOPs, where the rest of the layer takes 24 D^2.

    Args:
        config: of the LM; None is returned for other positions.
        blocks: {module: weights} of the stack, below its name; fused if `config` says so.
        length: S, for the distances 0..S-1.
        dtype: of the table.
    """
    if config.position != "relative":
        return None
    w = blocks["block/attention/relative"]["w"]
    r = embed.sinusoids(length, config.width).astype(dtype)
    if isinstance(w, Int8Weight):
        project = lambda own: product(r, own, (2,) if config.fused else (0,))
        if is_unrolled(w):
            return Layers(project(layer_slice(w, layer)) for layer in range(config.num_layers))
        return jax.vmap(project)(w)
    letters = "sd,lhkd->lshk" if config.fused else "sd,ldhk->lshk"
    if is_unrolled(w):
        return Layers(jnp.einsum(letters.replace("l", ""), r, own.astype(dtype)) for own in w)
    return jnp.einsum(letters, r, w.astype(dtype))
