"""The cache of decoding, and the visual inputs of a batch of prompts.

    lm        key, value     [layers, B, S, G, K]       a token's row is its position
    media     key, value     [layers, B, 1, R, G, K]    each sequence's last image, or all N images
              seen           [layers, B, N, R]          those latents that new tokens attend
    shared    relative       [layers, S, H, K]          the same for all sequences

Grafted blocks (`models.flamingo.graft`) have such rows and tables too, with "grafted_" before their
names.

Weights that are `core.stack.unrolled` have a cache with one array for each layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core import trees
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.params import Axes
from flamingo_jax.core.stack import Layers, is_unrolled, unrolled
from flamingo_jax.core.trees import Params
from flamingo_jax.models import self_attention
from flamingo_jax.models.lm_config import LMConfig

Rows = dict[str, Array | Layers]
GRAFTED = "grafted_"


class Media(NamedTuple):
    """The visual inputs of a batch of prompts.

    Attributes:
        pool: latents; prompts may share them.
        slot: the row of the pool of each sequence's visual inputs, -1 = none.
    """

    pool: Float[Array, "M R D"]
    slot: Int[Array, "B N"]


@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding keeps from one token to the next.

    Attributes:
        lm: keys and values of the LM, and "raw", the input of its convolution, if it has one; and
            those of the grafted blocks.
        media: keys and values of each sequence's last image, or of all if generated text attends
            several (`XattnConfig.attend`). Empty for a language model.
        shared: what depends on the weights alone (`self_attention.distance_table`). If it is empty,
            each step computes it again.
        is_empty: whether it is known, when a program is compiled, that no token was written. The
            first tokens are at positions 0, 1, 2, ...
    """

    lm: Rows
    media: Rows
    shared: Rows = dataclasses.field(default_factory=dict)
    is_empty: bool = False

    def of_blocks(self, prefix: str = "") -> Rows:
        """Returns the rows and tables of one stack of blocks, by the names that the blocks know.

        Args:
            prefix: "" for the LM's, GRAFTED for those on top of it.
        """
        return {
            name.removeprefix(prefix): rows
            for name, rows in (self.lm | self.shared).items()
            if name.startswith(GRAFTED) == (prefix == GRAFTED)
        }

    def repeat(self, times: int) -> Cache:
        """Returns every sequence `times` times in a row (beams, candidates)."""
        return self._map(lambda leaf, batch: jnp.repeat(leaf, times, axis=batch))

    def take(self, rows: Int[Array, "B"]) -> Cache:
        """Returns these sequences, in this order."""
        return self._map(lambda leaf, batch: jnp.take(leaf, rows, axis=batch, mode="clip"))

    def with_prefix(self, prefix: Rows) -> Cache:
        """Returns the cache with `prefix` as the first tokens of its sequences.

        Args:
            prefix: from `first_tokens`, of n sequences; each is taken for B / n sequences in a row.
        """
        batch = self._batch_axis

        def put(empty: Array, rows: Array) -> Array:
            repeated = jnp.repeat(rows, empty.shape[batch] // rows.shape[batch], axis=batch)
            return jax.lax.dynamic_update_slice_in_dim(empty, repeated, 0, axis=batch + 1)

        return dataclasses.replace(self, lm=jax.tree.map(put, self.lm, prefix), is_empty=False)

    def first_tokens(self, length: int, copies: int) -> Rows:
        """Returns the LM's rows of the first sequence, `copies` times.

        Args:
            length: tokens; shorter rows are padded.
            copies: one for each data shard of a mesh, so that each shard has its own.
        """
        batch = self._batch_axis

        def first(path: Any, leaf: Array) -> Array:
            row = jax.lax.slice_in_dim(leaf, 0, 1, axis=batch)
            rows = jnp.repeat(_resized(row, length, axis=batch + 1), copies, axis=batch)
            axes = logical_axes(path[0].key, leaf.ndim + 1 - batch)
            return constrain(rows, *axes[1 - batch :])

        return jax.tree_util.tree_map_with_path(first, self.lm)

    def unrolled(self) -> Cache:
        """Returns the cache with one array for each layer, for weights that are unrolled."""
        lm, media, shared = map(unrolled, (self.lm, self.media, self.shared))
        return Cache(lm, media, shared, self.is_empty)

    def map_with_axes(self, function: Callable[[Array, Axes], Array]) -> Cache:
        """Applies function(array, its logical axes) to each array, all of them stacked."""

        def at(path: Any, leaf: Array) -> Array:
            return function(leaf, logical_axes(path[-1].key, leaf.ndim))

        parts = ({"lm": self.lm, "media": self.media, "shared": self.shared},)
        return Cache(**jax.tree_util.tree_map_with_path(at, *parts), is_empty=self.is_empty)

    def _map(self, function: Callable[[Array, int], Array]) -> Cache:
        """Applies function(leaf, its batch axis)."""
        batch = self._batch_axis
        lm, media = jax.tree.map(lambda leaf: function(leaf, batch), (self.lm, self.media))
        return Cache(lm, media, self.shared, self.is_empty)

    @property
    def _batch_axis(self) -> int:
        return 0 if is_unrolled(self.lm) else 1


jax.tree_util.register_dataclass(
    Cache, data_fields=["lm", "media", "shared"], meta_fields=["is_empty"]
)


def length_of(rows: Rows) -> int:
    """Returns the number of tokens that the rows of a cache have room for."""
    *_, length, _, _ = jax.tree.leaves(rows["key"])[0].shape
    return int(length)


def logical_axes(name: str, num_dims: int) -> Axes:
    """Returns the logical axes of a stacked array of a cache, words of `core.axes.RULES`.

    Args:
        name: of the array: "key", "value", "seen" and "raw" (of latents, and what the convolution
            reads; they have no heads) or "relative" (shared by all sequences); or one of these with
            GRAFTED before it.
        num_dims: of the array.
    """
    name = name.removeprefix(GRAFTED)
    if name == "relative":
        return ("layers", None, "heads", "head_dim")
    inner: Axes = ("kv_heads", "head_dim") if name in ("key", "value") else ()
    return ("layers", "batch", *(None,) * (num_dims - 2 - len(inner)), *inner)


class Blocks(NamedTuple):
    """A stack of blocks.

    Attributes:
        config: of the LM that they are, or could be, the blocks of.
        path: prefix of their weights.
    """

    config: LMConfig
    path: str


class MediaRows(NamedTuple):
    """The sizes of the cross-attention's keys and values.

    Attributes:
        num_layers: of cross-attention.
        num_latents: R, of an image.
        num_kv_heads: G.
        head_dim: K.
        has_seen: whether new tokens attend only some of the latents that are kept.
    """

    num_layers: int
    num_latents: int
    num_kv_heads: int
    head_dim: int
    has_seen: bool = False


@dataclasses.dataclass(frozen=True)
class CacheShape:
    """The sizes of a model that give the shapes of its cache.

    Attributes:
        blocks: {"": the LM's, GRAFTED: those on top of it, if there are some}.
        media: of the cross-attention; None for a language model.
    """

    blocks: Mapping[str, Blocks]
    media: MediaRows | None = None

    def empty(
        self, batch_size: int, length: int, dtype: DTypeLike, params: Params | None = None
    ) -> Cache:
        """Returns zeros for `length` tokens; with weights, also `Cache.shared`."""
        lm: Rows = {}
        for prefix, (config, _) in self.blocks.items():
            rows = (config.num_layers, batch_size, length)
            inner = (config.kv_heads, config.head_size)
            for name in ("key", "value"):
                lm[prefix + name] = jnp.zeros((*rows, *inner), dtype)
            if config.qkv_conv_width:
                channels = (config.num_heads + 2 * config.kv_heads) * config.head_size
                lm[f"{prefix}raw"] = jnp.zeros((*rows, channels), dtype)
        media: Rows = {}
        if self.media is not None:
            layers, *latents, has_seen = self.media
            shape = (layers, batch_size, 1, *latents)
            media = {name: jnp.zeros(shape, dtype) for name in ("key", "value")}
            if has_seen:
                media["seen"] = jnp.zeros(shape[:4], bool)
        return Cache(lm, media, self._shared(length, dtype, params), is_empty=True)

    def _shared(self, length: int, dtype: DTypeLike, params: Params | None) -> Rows:
        if params is None:
            return {}
        shared: Rows = {}
        for prefix, (config, path) in self.blocks.items():
            weights = trees.subtree(params, path)
            table = self_attention.distance_table(config, weights, length, dtype)
            if table is not None:
                shared[f"{prefix}relative"] = table
        return shared


def _resized(x: Array, length: int, *, axis: int) -> Array:
    """Returns x with `length` rows along an axis: the first ones, or zeros after all of them."""
    missing = length - x.shape[axis]
    if missing <= 0:
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)
