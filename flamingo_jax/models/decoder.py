"""What decoding, scoring and training ask of a model: a handful of pure functions, the same for the LM alone and Flamingo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core import trees
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.stack import is_unrolled, layer_slice, unrolled
from flamingo_jax.core.trees import Params
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import lm as lm_lib
from flamingo_jax.models import self_attention
from flamingo_jax.models.losses import joined_logits, next_token_losses


class Media(NamedTuple):
    """The visual inputs of a batch of prompts: a pool that prompts may share, and which rows each sequence uses."""

    pool: Float[Array, "M R D"]
    slot: Int[Array, "B N"]


@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding keeps: one array with a leading layer axis for each name, or one for each layer (`unrolled`).

    The batch is axis 1, or 0 in the arrays of each layer, of all but the shared ones.

    Attributes:
        lm: keys and values of the LM, {name: [layers, B, S, ...]}; a token's row is its position.
        media: keys and values of each sequence's last image, {name: [layers, B, 1, R, H, K]}: generated text attends
            no other. Empty for an LM alone.
        shared: what follows from the weights alone, {"relative": [layers, S, H, K]} (`self_attention.distance_table`). Empty: it is computed
            anew in each step.
    """

    lm: dict[str, Any]
    media: dict[str, Any]
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)

    def repeat(self, times: int) -> Cache:
        """Every sequence `times` times in a row (beams, candidates)."""
        return self._map(lambda leaf, batch: jnp.repeat(leaf, times, axis=batch))

    def take(self, rows: Int[Array, "B"]) -> Cache:
        """Reorders or selects sequences."""
        return self._map(lambda leaf, batch: jnp.take(leaf, rows, axis=batch, mode="clip"))

    def unrolled(self) -> Cache:
        """Each layer's by itself, for weights that are `core.stack.unrolled`."""
        return Cache(*map(unrolled, (self.lm, self.media, self.shared)))

    def _map(self, function: Callable[[Array, int], Array]) -> Cache:
        """Applies function(leaf, its batch axis)."""
        apart = is_unrolled(self.lm)
        lm, media = jax.tree.map(lambda leaf: function(leaf, 0 if apart else 1), (self.lm, self.media))
        return Cache(lm, media, self.shared)


jax.tree_util.register_dataclass(Cache, data_fields=["lm", "media", "shared"], meta_fields=[])


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model as pure functions of its weights.

    Attributes:
        init: rng -> weights (float32).
        token_losses: (weights, batch, num_shards=1, rng=None) -> float32[B, L-1], -log p(tokens[:, l+1] | before), unweighted. `rng` is
            for a vision encoder that is trained (stochastic depth); with None nothing is dropped.
        encode: (weights, frames uint8[M, F, H, W, 3], frame_mask bool[M, F]) -> [M, R, D]; zeros for an LM alone.
        extend: (weights, cache, tokens[B, T], positions[B, T], media_index[B, T], media: Media | None, chunk=None) ->
            (logits float32[B, T, V + new], cache). One function for prefill (media given), for decoding and for scoring
            candidates (media None: the cached last image is attended where media_index > 0). Positions are consecutive;
            what stands in the cache at or after them is overwritten or not attended. chunk=(tokens, span) attends
            images chunk by chunk (`nn.attention.attend_own_image_chunked`).
        empty_cache: (batch_size, length, dtype, weights=None) -> Cache. With weights it holds what follows from them alone, so that
            decoding need not compute it for each token.
        arrange: weights as `init` makes them and checkpoints keep them -> the form that the other functions compute with.
        arranged_init: rng -> weights in that form; for their names and logical axes. None: the form is the same.
        features: (weights, frames, frame_mask) as for `encode` -> float32[M, E], what the vision encoder alone sees: the mean over the
            places of its last grid, and over real frames. None for an LM alone.
    """

    init: Callable[[Array], Any]
    token_losses: Callable[..., Array]
    encode: Callable[..., Array]
    extend: Callable[..., tuple[Array, Cache]]
    empty_cache: Callable[..., Cache]
    arrange: Callable[[Params], Params] = lambda params: params
    arranged_init: Callable[[Array], Any] | None = None
    features: Callable[..., Array] | None = None


def empty_lm_cache(config: lm_lib.LMConfig, batch_size: int, length: int, dtype: Any) -> dict[str, Array]:
    """Zeros for the keys and values of `length` tokens (and for the raw channels of the convolution, where there is one)."""
    shape = (config.num_layers, batch_size, length, config.kv_heads, config.head_size)
    cache = {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
    if config.qkv_conv_width:
        channels = (config.num_heads + 2 * config.kv_heads) * config.head_size
        cache["raw"] = jnp.zeros((config.num_layers, batch_size, length, channels), dtype)
    return cache


def shared_cache(
    config: lm_lib.LMConfig, params: Params | None, prefix: str, length: int, dtype: Any
) -> dict[str, Any]:
    """`Cache.shared` of `length` positions; `prefix`: of the LM's blocks in `params`; without weights it is empty."""
    if params is None:
        return {}
    table = self_attention.distance_table(config, trees.subtree(params, prefix), length, dtype)
    return {} if table is None else {"relative": table}


def language_model(config: lm_lib.LMConfig) -> Decoder:
    """The language model alone: weights under "lm/..."; images are ignored."""

    def losses(tokens: Array, segment: Array) -> Array:
        model = lm_lib.LM(config)
        context = self_attention.packed_context(segment)
        x, _ = model.run(model.embed(tokens, context.positions), context)
        return next_token_losses(*model.logits(x), tokens, config.vocab_size)

    def step(tokens: Array, positions: Array, cache: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        model = lm_lib.LM(config)
        context = self_attention.cached_context(positions, layer_slice(cache["key"], 0).shape[1])
        x, rows = model.run(model.embed(tokens, positions), context, cache)
        cache = self_attention.written(cache, rows, positions)
        return joined_logits(*model.logits(x), config.vocab_size), cache

    transformed = hk.transform(losses)
    transformed_step = hk.transform(step)

    def token_losses(params: Params, batch: Batch, *, num_shards: int = 1, rng: Array | None = None) -> Array:
        return transformed.apply(params, None, batch.tokens, batch.segment)

    def extend(
        params: Params,
        cache: Cache,
        tokens: Array,
        positions: Array,
        media_index: Array,
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Array, Cache]:
        logits, lm_cache = transformed_step.apply(params, None, tokens, positions, cache.lm | cache.shared)
        return logits, Cache(lm_cache, cache.media, cache.shared)

    def empty_cache(batch_size: int, length: int, dtype: Any, params: Params | None = None) -> Cache:
        shared = shared_cache(config, params, "lm/blocks", length, dtype)
        return Cache(empty_lm_cache(config, batch_size, length, dtype), {}, shared)

    ids = jnp.zeros((1, 2), jnp.int32)
    return Decoder(
        init=lambda rng: transformed.init(rng, ids, ids + 1),
        token_losses=token_losses,
        encode=lambda params, frames, frame_mask: jnp.zeros((frames.shape[0], 1, config.width)),
        extend=extend,
        empty_cache=empty_cache,
    )
