"""The decoder language model: Chinchilla by default, other families by options.

    tokens [B T] --embed--> x [B T D]

    num_layers x:   x = x + attention(norm(x))
                    x = x + feed_forward(norm(x))

    x --norm--> x E^T --> logits [B T V]

Chinchilla and Gopher have an RMSNorm before each part, relative positions of Transformer-XL with
one projection per layer, GELU of width 4D, biases in the feed-forward layers only, and tied
embeddings. Other families have norms after each part, or before and after (`LMConfig.norm_place`).
The LM is frozen in Flamingo (paper, 2.2).

New tokens (`<EOC>`; paper, 2.4) are trained rows next to the frozen table. They have the ids V,
V+1, ... and an input and an output row each. The table is padded to a multiple of 128 rows for
sharding; the padding is masked and has no id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int, UInt8
from flamingo_jax.core.params import param, weight
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.core.stack import Stack, layer_slice
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import halves, self_attention
from flamingo_jax.models.block import Block, residual
from flamingo_jax.models.cache import Cache, Media
from flamingo_jax.models.halves import Halves
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.models.losses import joined_logits, next_token_losses
from flamingo_jax.models.self_attention import Context, normalised
from flamingo_jax.nn.attention import capped
from flamingo_jax.nn.linear import einsum_float32, rows_of, scores_of_rows

_NEVER = -1e30  # logit of the padding rows of the table

BlockRunner = Callable[[Stack, Any, Array, Any], tuple[Array, Any]]


def block_stack(config: LMConfig, context: Context, *, name: str) -> Stack:
    """Returns the stack of the blocks of an LM; it belongs to the module that is running.

    Its inputs are from `inputs_of`. It takes the residual stream [B, T, D], or its `Halves`.
    """

    def block(x: Array | Halves, inputs: Any) -> tuple[Any, Any]:
        cache, is_global = inputs
        if isinstance(x, Halves):
            return halves.apply(Block(config), x, context, is_global), None
        return Block(config)(x, context, cache, is_global)

    return Stack(config.num_layers, block, name=name, remat=config.remat)


def inputs_of(config: LMConfig, cache: Any) -> tuple[Any, Bool[Array, "layers"] | None]:
    """Returns the inputs of a stack of blocks: (their caches or None, which of them are global)."""
    if not config.global_every:
        return cache, None
    return cache, jnp.asarray([window == 0 for window in config.windows])


class LM(hk.Module):
    """The language model.

    As a whole model (`token_losses`, `extend`) it ignores images. Flamingo uses its parts (`embed`,
    `run`, `logits`) and puts layers between the blocks.
    """

    def __init__(
        self, config: LMConfig, new_tokens: NewTokenRows | None = None, *, name: str = "lm"
    ):
        """Describes the model.

        Args:
            config: its shape and options.
            new_tokens: rows of the new tokens, which are the caller's weights; None = no new token.
            name: module name.
        """
        super().__init__(name=name)
        self.config, self.new_tokens = config, new_tokens

    @hk.name_like("__call__")
    def token_losses(
        self,
        batch: Batch[Array],
        *,
        dtype: DTypeLike = jnp.float32,
        num_shards: int = 1,
        rng: Array | None = None,
    ) -> Float32[Array, "B T"]:
        """Returns -log p(token l+1 | tokens before it), T = L - 1; see `models.api.Model`."""
        del dtype, num_shards, rng
        context = self_attention.packed_context(batch.segment)
        x, _ = self.run(self.embed(batch.tokens, context.positions), context)
        return next_token_losses(*self.logits(x), batch.tokens, self.config.vocab_size)

    @hk.name_like("__call__")
    def extend(
        self,
        cache: Cache,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        media_index: Int[Array, "B T"],
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Float32[Array, "B T V"], Cache]:
        """Reads the next tokens of each sequence; arguments as in `models.api.Model`."""
        del media_index, media, chunk
        context = self_attention.cached_context(
            positions, layer_slice(cache.lm["key"], 0).shape[1], is_empty=cache.is_empty
        )
        x, rows = self.run(self.embed(tokens, positions), context, cache.lm | cache.shared)
        lm = self_attention.written(cache.lm, rows, positions)
        logits = joined_logits(*self.logits(x), self.config.vocab_size)
        return logits, Cache(lm, cache.media, cache.shared)

    def encode(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: Bool[Array, "M F"],
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float32[Array, "M 1 D"]:
        """Returns one row of zeros for each image."""
        del frame_mask, dtype
        return jnp.zeros((frames.shape[0], 1, self.config.width))

    def features(
        self,
        frames: UInt8[Array, "M F S S 3"],
        frame_mask: Bool[Array, "M F"],
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float32[Array, "M E"]:
        """Raises a ValueError, since there is no vision encoder."""
        raise ValueError("A language model alone has no features of images: take a Flamingo.")

    @hk.name_like("__call__")
    def embed(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Returns the embedded tokens; ids from V on are new tokens."""
        table = self._table("embedding")
        known = self.config.vocab_size
        x = rows_of(table, jnp.minimum(tokens, known - 1))
        # Each chip looks up the tokens in its rows of the table; then the results are summed.
        x = constrain(x, "batch", "length", "embed")
        if self.new_tokens is not None:
            new = self.new_tokens.input.astype(x.dtype)[jnp.maximum(tokens - known, 0)]
            x = jnp.where((tokens >= known)[:, :, None], new, x)
        if self.config.scaled_embedding:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        if self.config.position == "learned":
            shape = (self.config.max_length, self.config.width)
            init = hk.initializers.RandomNormal(0.02)
            table = param("positions", shape, ("length", "embed"), init)
            x = x + table.astype(x.dtype)[positions]
        return residual(x)

    @hk.name_like("__call__")
    def run(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        cache: Any = None,
        through: BlockRunner | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs the blocks.

        Args:
            x: embedded tokens.
            context: positions and mask.
            cache: each layer's keys and values, stacked on a leading layer axis; None in training.
            through: runs the stack, `through(stack, weights, x, inputs)`; None = one block after
                another. With it, Flamingo puts layers between the blocks.

        Returns:
            (x, new rows of each layer's cache, for `self_attention.written`), or what `through`
            returns.
        """
        stack = block_stack(self.config, context, name="blocks")
        inputs = inputs_of(self.config, cache)
        if through is None:
            return stack(x, inputs)
        return through(stack, stack.weights(x, layer_slice(inputs, 0)), x, inputs)

    @hk.name_like("__call__")
    def logits(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float32[Array, "B T V"], Float32[Array, "B T N"] | None]:
        """Returns the logits of (the padded table, the new tokens)."""
        cap = self.config.logit_cap
        x = normalised(self.config, x, name="final_norm")
        base = scores_of_rows(x, self._table("embedding" if self.config.tied_head else "head"))
        base = capped(base, cap)
        base = constrain(base, "batch", "length", "vocab")
        padding = jnp.arange(self.config.table_rows) >= self.config.vocab_size
        base = jnp.where(padding[None, None, :], _NEVER, base)
        if self.new_tokens is None:
            return base, None
        if self.new_tokens.output is None:
            return base, jnp.full((*x.shape[:2], len(self.new_tokens.input)), _NEVER, base.dtype)
        rows = self.new_tokens.output.astype(x.dtype)
        return base, capped(einsum_float32("btd,nd->btn", x, rows), cap)

    @hk.name_like("__call__")
    def _table(self, name: str) -> Array | Int8Weight:
        init = hk.initializers.TruncatedNormal(self.config.width**-0.5)
        shape = (self.config.table_rows, self.config.width)
        return weight(name, shape, ("vocab", "embed"), init, contracted=(1,))


class NewTokens(hk.Module):
    """Trained rows of tokens that are not in the LM's vocabulary, such as `<EOC>` (paper, 2.4)."""

    def __init__(
        self, num_tokens: int, width: int, *, are_predicted: bool = True, name: str = "new_tokens"
    ):
        super().__init__(name=name)
        self.shape, self.are_predicted = (num_tokens, width), are_predicted

    def __call__(self) -> NewTokenRows:
        """Makes the table [num_tokens, D] of the input, and that of the output if there is one."""
        init, axes = hk.initializers.TruncatedNormal(self.shape[1] ** -0.5), ("new_tokens", "embed")
        names = ("input", "output") if self.are_predicted else ("input",)
        return NewTokenRows(*(param(name, self.shape, axes, init) for name in names))


class NewTokenRows(NamedTuple):
    """The new tokens' rows of the input embedding and of the head; None = never predicted."""

    input: Float[Array, "N D"]
    output: Float[Array, "N D"] | None = None
