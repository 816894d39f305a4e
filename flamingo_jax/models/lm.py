"""The decoder language model: Chinchilla by default (FACTS 1.4), other families by options of the one block.

    tokens [B T] -> embed [B T D] -> num_layers x ( x + attention(norm x) ; x + feed-forward(norm x) ) -> norm -> x E^T [B T V]

Chinchilla / Gopher: RMSNorm before each part, relative positions of Transformer-XL with one projection per layer,
GeLU of width 4D, biases in the feed-forward alone, tied embeddings. Frozen in Flamingo (paper, 2.2).

New tokens (`<EOC>`; paper, A.1.4) are trainable rows beside the frozen table: ids V, V+1, ... with an input and an output
row each. The table is padded to a multiple of 128 rows for sharding; the padding is masked and has no id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int
from flamingo_jax.core.params import Remat, Stack, layer_slice, param
from flamingo_jax.core.trees import Params
from flamingo_jax.nn import embed, masks
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.feedforward import Activation, feed_forward
from flamingo_jax.nn.linear import einsum_float32, fused_linear, linear
from flamingo_jax.nn.norm import layer_norm, rms_norm

_NEVER = -1e30  # logit of the padding rows of the table


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Shape and options of the language model; the defaults are Chinchilla's.

    Attributes:
        vocab_size: V, the tokenizer's pieces, without new tokens; 0 is filled in from the tokenizer by the programs.
        num_layers, width, num_heads: as in Table 4 of the paper.
        head_dim: K; 0 is width / num_heads.
        num_kv_heads: G; 0 is num_heads.
        mlp_width: M; 0 is 4 * width.
        rotary_base, rotary_fraction: of rotary positions.
        max_length: rows of the table of learned positions.
        qkv_conv_width: width of a depthwise causal convolution on q, k and v (Primer, So et al. 2021); 0 is none. Not in
            the paper.
        vocab_multiple: the table is padded to a multiple of it.
        remat: see `core.params.Stack`.
        fused: whether the block's weights are in the form that `fuse` gives, which a frozen LM is computed in.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    head_dim: int = 0
    num_kv_heads: int = 0
    mlp_width: int = 0
    norm: Literal["rms", "layer"] = "rms"
    position: Literal["relative", "rotary", "alibi", "learned", "none"] = "relative"
    rotary_base: float = 10_000.0
    rotary_fraction: float = 1.0
    max_length: int = 2048
    activation: Activation = "gelu"
    attention_bias: bool = False
    mlp_bias: bool = True
    parallel_residual: bool = False
    qk_norm: bool = False
    tied_head: bool = True
    qkv_conv_width: int = 0
    vocab_multiple: int = 128
    remat: Remat = "none"
    fused: bool = False

    def __post_init__(self) -> None:
        if self.fused and not self.can_fuse:
            raise ValueError("fused: there are biases, or fewer key and value heads than query heads; set it to False.")
        if not self.head_dim and self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}: give head_dim.")
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}.")

    @property
    def head_size(self) -> int:
        """K, the size of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, the number of key/value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def can_fuse(self) -> bool:
        """Whether queries, keys and values can be one product."""
        return not self.attention_bias and self.kv_heads == self.num_heads

    @property
    def table_rows(self) -> int:
        """Rows of the padded embedding table."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


class Context(NamedTuple):
    """What all blocks share: where each token stands and what it may attend."""

    positions: Int[Array, "B T"]
    mask: Bool[Array, "B T S"]
    distances: Int[Array, "B T S"]
    segment: Int[Array, "B T"] | None
    aligned: bool  # query i stands at key i


def packed_context(segment: Int[Array, "B L"]) -> Context:
    """Context of training: whole rows of packed documents, each attending itself causally."""
    length = segment.shape[1]
    index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], segment.shape)
    mask = masks.causal(index, length) & masks.same_segment(segment)
    return Context(masks.positions_in_segment(segment), mask, _distances(index, length), segment, aligned=True)


def cached_context(positions: Int[Array, "B T"], cache_length: int) -> Context:
    """Context of prefill and decoding: the keys stand in the cache at their positions."""
    return Context(
        positions, masks.causal(positions, cache_length), _distances(positions, cache_length), None, aligned=False
    )


def _distances(positions: Int[Array, "B T"], num_keys: int) -> Int[Array, "B T S"]:
    return positions[:, :, None] - jnp.arange(num_keys, dtype=positions.dtype)[None, None, :]


Through = Callable[[Stack, Any, Array, Any], tuple[Array, Any]]


class Block(hk.Module):
    """One layer: pre-norm self-attention and feed-forward, in sequence or (GPT-NeoX) in parallel."""

    def __init__(self, config: LMConfig, context: Context, *, name: str = "block"):
        """`context`: shared by all layers."""
        super().__init__(name=name)
        self.config, self.context = config, context

    def __call__(self, x: Float[Array, "B T D"], cache: Any = None) -> tuple[Float[Array, "B T D"], Any]:
        """Returns (x, this layer's cache with the new tokens written into it)."""
        config = self.config
        norm = layer_norm if config.norm == "layer" else rms_norm
        x = residual(x)
        attended, cache = SelfAttention(config, self.context, name="attention")(norm(x, name="attention_norm"), cache)
        if not config.parallel_residual:
            x = checkpoint_name(residual(x + attended), "attended")
        hidden = feed_forward(
            norm(x, name="mlp_norm"),
            config.mlp_width or 4 * config.width,
            activation=config.activation,
            bias=config.mlp_bias,
            name="mlp",
        )
        return residual(x + attended + hidden if config.parallel_residual else x + hidden), cache


def residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The residual stream between the parts of a block: its tokens are split over all chips where the layout says so."""
    return constrain(x, "rows", "sequence", "embed")


class SelfAttention(hk.Module):
    """Causal self-attention with the positions, heads and cache that the config declares."""

    def __init__(self, config: LMConfig, context: Context, *, name: str):
        """`context`: shared by all layers."""
        super().__init__(name=name)
        self.config, self.context = config, context

    def __call__(self, x: Float[Array, "B T D"], cache: Any) -> tuple[Float[Array, "B T D"], Any]:
        """Attends x itself (cache None) or the cache after x has been written into it."""
        config, context = self.config, self.context
        q, k, v = self._project(x)
        cache = dict(cache) if cache is not None else None
        distances = cache.pop("relative", None) if cache is not None else None
        if config.qkv_conv_width:
            q, k, v, cache = self._convolve(q, k, v, cache)
        if config.qk_norm:
            q, k = (self._norm_all_heads(y, name) for y, name in ((q, "query_norm"), (k, "key_norm")))
        if config.position == "rotary":
            q, k = (
                embed.rotary(y, context.positions, base=config.rotary_base, fraction=config.rotary_fraction)
                for y in (q, k)
            )
        if cache is not None:
            k = cache["key"] = _write(cache["key"], k, context.positions)
            v = cache["value"] = _write(cache["value"], v, context.positions)
        q, bias = self._position_bias(q, k.shape[1], distances)
        out = constrain(attend(q, k, v, context.mask, bias), "batch", "length", "heads", "head_dim")
        out = jax.lax.optimization_barrier(out)  # transposed once, not again for each tile of the product
        out = linear(
            out, (config.width,), axes=("heads", "head_dim", "embed"), num_in=2, bias=config.attention_bias, name="out"
        )
        return out, cache

    @hk.name_like("__call__")
    def _project(self, x: Array) -> tuple[Array, Array, Array]:
        config = self.config
        if config.fused:
            qkv = fused_linear(
                x, (3, config.num_heads, config.head_size), axes=(None, "heads", "head_dim", "embed"), name="qkv"
            )
            qkv = constrain(qkv, "batch", "length", None, "heads", "head_dim")
            q, k, v = (checkpoint_name(qkv[:, :, i], name) for i, name in enumerate(("query", "key", "value")))
            return q, k, v

        def project(heads: int, axis: str, name: str) -> Array:
            shape, axes = (heads, config.head_size), ("embed", axis, "head_dim")
            y = linear(x, shape, axes=axes, bias=config.attention_bias, name=name)
            return checkpoint_name(constrain(y, "batch", "length", axis, "head_dim"), name)

        q = project(config.num_heads, "heads", "query")
        k, v = (project(config.kv_heads, "kv_heads", name) for name in ("key", "value"))
        return q, k, v

    @hk.name_like("__call__")
    def _position_bias(self, q: Array, num_keys: int, r: Array | None) -> tuple[Array, Array | None]:
        """Returns (q as it meets the keys, what positions add to the scores); r: `distance_table` of this layer, if it is at hand."""
        config = self.config
        if config.position == "alibi":
            return q, embed.alibi_bias(config.num_heads, self.context.distances)
        if config.position != "relative":
            return q, None
        shape = (config.num_heads, config.head_size)
        content, position = (
            jnp.broadcast_to(param(name, shape, ("heads", "head_dim"), jnp.zeros).astype(q.dtype), q.shape)
            for name in ("content_bias", "position_bias")
        )
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
    def _norm_all_heads(self, y: Array, name: str) -> Array:
        return layer_norm(y.reshape(*y.shape[:2], -1), axis_name="heads", name=name).reshape(y.shape)

    @hk.name_like("__call__")
    def _convolve(self, q: Array, k: Array, v: Array, cache: Any) -> tuple[Array, Array, Array, Any]:
        """Mixes each channel of q, k, v with its own last tokens; the cache keeps the channels as they were."""
        parts = [y.reshape(*y.shape[:2], -1) for y in (q, k, v)]
        raw = jnp.concatenate(parts, axis=-1)
        lags = range(1, self.config.qkv_conv_width)
        if cache is None:
            before = [embed.shifted(raw, lag, self.context.segment) for lag in lags]
        else:
            cache["raw"] = _write(cache["raw"], raw, self.context.positions)
            before = [_read(cache["raw"], self.context.positions - lag) for lag in lags]
        mixed = []
        for y, shape, name, axis in zip(
            parts, (q, k, v), ("query", "key", "value"), ("heads", "kv_heads", "kv_heads"), strict=True
        ):
            kernel_shape = (self.config.qkv_conv_width, *shape.shape[2:])
            kernel = param(f"{name}_kernel", kernel_shape, ("kernel", axis, "head_dim"), _identity_kernel)
            start = 0 if name == "query" else parts[0].shape[-1] + (parts[1].shape[-1] if name == "value" else 0)
            own = [lag[..., start : start + y.shape[-1]] for lag in before]
            mixed.append(embed.causal_convolution(y, kernel.reshape(len(kernel), -1), own).reshape(shape.shape))
        return mixed[0], mixed[1], mixed[2], cache


def _identity_kernel(shape: tuple[int, ...], dtype: Any) -> Array:
    """At birth the convolution hands the current token through."""
    return jnp.zeros(shape, dtype).at[0].set(1.0)


def _write(cache: Array, new: Array, positions: Array) -> Array:
    """Puts T new rows into each cache row at its positions, which are consecutive."""
    put = lambda row, x, start: jax.lax.dynamic_update_slice_in_dim(row, x.astype(row.dtype), start, axis=0)  # noqa: E731
    return jax.vmap(put)(cache, new, positions[:, 0])


def _read(cache: Array, positions: Array) -> Array:
    """Reads rows of the cache by position; 0 before the start."""
    rows = jnp.take_along_axis(cache, jnp.maximum(positions, 0)[:, :, None], axis=1)
    return jnp.where((positions >= 0)[:, :, None], rows, 0)


def distance_table(config: LMConfig, blocks: Params, length: int, dtype: Any) -> Float[Array, "layers S H K"] | None:
    """The projected embedding of each distance in each layer: what relative positions need, whatever the tokens.

    Each decoded token would else project all of them again in every layer, 2 S D^2 FLOPs, where the rest of the layer takes 24 D^2.

    Args:
        config: of the LM; with other positions there is no table.
        blocks: {module: weights} of the stack, below its name; fused if `config` says so.
        length: S, the distances 0..S-1.
        dtype: of the table.
    """
    if config.position != "relative":
        return None
    w = blocks["block/attention/relative"]["w"].astype(dtype)
    r = embed.sinusoids(length, config.width).astype(dtype)
    return jnp.einsum("sd,lhkd->lshk" if config.fused else "sd,ldhk->lshk", r, w)


def fuse(config: LMConfig, blocks: Params) -> dict[str, dict[str, Array]]:
    """Returns the weights of the stacked blocks in the form that `LMConfig.fused` computes with.

    Queries, keys and values become one product, so that a sharded layer gathers its input once and reduces one gradient; the
    contracted axis comes last, which is the order that the TPU compiler would copy them into.

    Args:
        config: of the LM, not fused.
        blocks: {module: weights} of a stack, below its name.
    """
    kept = {module: dict(weights) for module, weights in blocks.items()}
    parts = [kept.pop(f"block/attention/{name}")["w"] for name in ("query", "key", "value")]
    kept["block/attention/qkv"] = {"w": jnp.stack([jnp.moveaxis(w, 1, -1) for w in parts], axis=1)}
    if config.position == "relative":
        kept["block/attention/relative"] = {"w": jnp.moveaxis(kept["block/attention/relative"]["w"], 1, -1)}
    return kept


class LM(hk.Module):
    """Embedding, blocks and head, as parts: Flamingo puts its own layers between the blocks."""

    def __init__(self, config: LMConfig, new_tokens: NewTokenRows | None = None, *, name: str = "lm"):
        """`new_tokens`: the rows of the new tokens, made by the caller (they are not the LM's); None is no new token."""
        super().__init__(name=name)
        self.config, self.new_tokens = config, new_tokens

    @hk.name_like("__call__")
    def embed(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Input embeddings; ids from V on are new tokens."""
        table = self._table("embedding")
        known = self.config.vocab_size
        x = table[jnp.minimum(tokens, known - 1)]
        # Each chip looks up its own rows of the vocabulary; then they are summed.
        x = constrain(x, "batch", "length", "embed")
        if self.new_tokens is not None:
            new = self.new_tokens.input.astype(x.dtype)[jnp.maximum(tokens - known, 0)]
            x = jnp.where((tokens >= known)[:, :, None], new, x)
        if self.config.position == "learned":
            shape = (self.config.max_length, self.config.width)
            table = param("positions", shape, ("length", "embed"), hk.initializers.RandomNormal(0.02))
            x = x + table.astype(x.dtype)[positions]
        return residual(x)

    @hk.name_like("__call__")
    def run(
        self, x: Float[Array, "B T D"], context: Context, cache: Any = None, through: Through | None = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs the blocks.

        Args:
            x: embedded tokens.
            context: positions and mask.
            cache: each layer's keys and values, stacked on a leading layer axis; None in training.
            through: how to go through the stack, `through(stack, weights, x, cache)`; None is one block after another.
                Flamingo puts its own layers between the blocks in this way.

        Returns:
            (x, the updated cache), or whatever `through` returns.
        """
        stack = Stack(
            self.config.num_layers,
            lambda x, cache: Block(self.config, context)(x, cache),
            name="blocks",
            remat=self.config.remat,
        )
        if through is None:
            return stack(x, cache)
        return through(stack, stack.weights(x, layer_slice(cache, 0)), x, cache)

    @hk.name_like("__call__")
    def logits(self, x: Float[Array, "B T D"]) -> tuple[Float32[Array, "B T V"], Float32[Array, "B T N"] | None]:
        """Returns the logits of (the padded table, the new tokens), float32, not yet normalised."""
        norm = layer_norm if self.config.norm == "layer" else rms_norm
        x = norm(x, name="final_norm")
        table = self._table("embedding" if self.config.tied_head else "head").astype(x.dtype)
        base = einsum_float32("btd,vd->btv", x, table)
        base = constrain(base, "batch", "length", "vocab")
        padding = jnp.arange(self.config.table_rows) >= self.config.vocab_size
        base = jnp.where(padding[None, None, :], _NEVER, base)
        if self.new_tokens is None:
            return base, None
        rows = self.new_tokens.output.astype(x.dtype)
        return base, einsum_float32("btd,nd->btn", x, rows)

    @hk.name_like("__call__")
    def _table(self, name: str) -> Array:
        init = hk.initializers.TruncatedNormal(self.config.width**-0.5)
        return param(name, (self.config.table_rows, self.config.width), ("vocab", "embed"), init)


class NewTokens(hk.Module):
    """Input and output rows of the tokens that the LM's vocabulary lacks (paper, A.1.4), trained with Flamingo's layers."""

    def __init__(self, num_tokens: int, width: int, *, name: str = "new_tokens"):
        """`num_tokens`: how many; `width`: D."""
        super().__init__(name=name)
        self.shape = (num_tokens, width)

    def __call__(self) -> NewTokenRows:
        """Makes the two tables [num_tokens, D]."""
        init = hk.initializers.TruncatedNormal(self.shape[1] ** -0.5)
        return NewTokenRows(*(param(name, self.shape, ("new_tokens", "embed"), init) for name in ("input", "output")))


class NewTokenRows(NamedTuple):
    """Rows of the new tokens in the input embedding and in the head."""

    input: Float[Array, "N D"]
    output: Float[Array, "N D"]


def next_token_losses(
    base: Float32[Array, "B L V"], new: Float32[Array, "B L N"] | None, tokens: Int[Array, "B L"], vocab_size: int
) -> Float32[Array, "B T"]:
    """-log p(tokens[:, l + 1]), T = L - 1, from the logits of the table and of the new tokens, without joining the two into one array.

    The table's rows stay sharded: the target's logit is a masked sum, and the new tokens enter through logsumexp. The last
    token predicts nothing; its logits are computed all the same, since L is what divides evenly over a mesh.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    ids = jnp.arange(base.shape[-1], dtype=targets.dtype)
    target = jnp.sum(jnp.where(targets[:, :, None] == ids[None, None, :], base, 0.0), axis=-1)
    normaliser = jax.nn.logsumexp(base, axis=-1)
    if new is not None:
        normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(new, axis=-1))
        new_ids = vocab_size + jnp.arange(new.shape[-1], dtype=targets.dtype)
        from_new = jnp.sum(jnp.where(targets[:, :, None] == new_ids[None, None, :], new, 0.0), axis=-1)
        target = jnp.where(targets >= vocab_size, from_new, target)
    return (normaliser - target)[:, :-1]


def joined_logits(
    base: Float32[Array, "B T V"], new: Float32[Array, "B T N"] | None, vocab_size: int
) -> Float32[Array, "B T C"]:
    """Logits by token id: the table's rows without its padding, then the new tokens (for decoding)."""
    base = base[..., :vocab_size]
    return base if new is None else jnp.concatenate([base, new], axis=-1)
