"""What decoding keeps from one token to the next, and the visual inputs of a batch of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core import trees
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.stack import Layers, is_unrolled, unrolled
from flamingo_jax.core.trees import Params
from flamingo_jax.models import self_attention
from flamingo_jax.models.lm_config import LMConfig

Rows = dict[str, Array | Layers]


class Media(NamedTuple):
    """The visual inputs of a batch of prompts.

    A pool that prompts may share, and which rows each sequence uses.
    """

    pool: Float[Array, "M R D"]
    slot: Int[Array, "B N"]


@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding keeps.

    One array with a leading layer axis for each name, or one for each layer
    (`core.stack.unrolled`).

    The batch is axis 1, or 0 in the arrays of each layer, of all but the shared ones.

    Attributes:
        lm: keys and values of the LM, {name: [layers, B, S, ...]}; a token's row is its position.
        media: keys and values of each sequence's last image, {name: [layers, B, 1, R, H, K]}:
            generated text attends no other. Empty for an LM alone.
        shared: what follows from the weights alone, {"relative": [layers, S, H, K]}
            (`self_attention.distance_table`). If it is empty, each step computes it anew.
    """

    lm: Rows
    media: Rows
    shared: Rows = dataclasses.field(default_factory=dict)

    def repeat(self, times: int) -> Cache:
        """Every sequence `times` times in a row (beams, candidates)."""
        return self._map(lambda leaf, batch: jnp.repeat(leaf, times, axis=batch))

    def take(self, rows: Int[Array, "B"]) -> Cache:
        """Reorders or selects sequences."""
        return self._map(lambda leaf, batch: jnp.take(leaf, rows, axis=batch, mode="clip"))

    def unrolled(self) -> Cache:
        """Returns the cache with one array per layer, for weights that are `core.stack.unrolled`."""
        return Cache(*map(unrolled, (self.lm, self.media, self.shared)))

    def _map(self, function: Callable[[Array, int], Array]) -> Cache:
        """Applies function(leaf, its batch axis)."""
        batch = 0 if is_unrolled(self.lm) else 1
        lm, media = jax.tree.map(lambda leaf: function(leaf, batch), (self.lm, self.media))
        return Cache(lm, media, self.shared)


jax.tree_util.register_dataclass(Cache, data_fields=["lm", "media", "shared"], meta_fields=[])


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """From what the shapes of a model's cache follow.

    Attributes:
        lm: the language model.
        blocks: prefix of its blocks among the weights.
        media: (layers, R, H, K) of the cross-attention's keys and values; None for an LM alone.
    """

    lm: LMConfig
    blocks: str
    media: tuple[int, int, int, int] | None = None

    def empty(
        self, batch_size: int, length: int, dtype: DTypeLike, params: Params | None = None
    ) -> Cache:
        """Returns zeros for `length` tokens.

        With weights, also what follows from them alone (`Cache.shared`).
        """
        config = self.lm
        rows = (config.num_layers, batch_size, length)
        names = {
            "key": (config.kv_heads, config.head_size),
            "value": (config.kv_heads, config.head_size),
        }
        lm: Rows = {name: jnp.zeros((*rows, *inner), dtype) for name, inner in names.items()}
        if config.qkv_conv_width:
            channels = (config.num_heads + 2 * config.kv_heads) * config.head_size
            lm["raw"] = jnp.zeros((*rows, channels), dtype)
        media: Rows = {}
        if self.media is not None:
            layers, *inner = self.media
            media = {
                name: jnp.zeros((layers, batch_size, 1, *inner), dtype) for name in ("key", "value")
            }
        return Cache(lm, media, self._shared(length, dtype, params))

    def _shared(self, length: int, dtype: DTypeLike, params: Params | None) -> Rows:
        if params is None:
            return {}
        table = self_attention.distance_table(
            self.lm, trees.subtree(params, self.blocks), length, dtype
        )
        return {} if table is None else {"relative": table}
