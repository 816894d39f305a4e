"""A batch in k chunks: the memory of one chunk, the gradient of the whole batch.

    rows of a batch   | shard 0: chunk 0, chunk 1, .. | shard 1: chunk 0, chunk 1, .. | ..
    chunk 1           | shard 0's part of it          | shard 1's part of it          | ..

Each data shard has a part of each chunk, so no row moves to another device. A chunk has its own
part of its shard's pool of images (`data.schema.Batch`): the vision encoder encodes each image
once, in its chunk.

    loss of chunk c  =  sum over its tokens of w * nll  /  divisor of the whole batch

`models.losses` has the divisors. The losses of the chunks, and so their gradients, sum up to those
of the batch. `datasets_per_step.accumulate` adds the gradients up, and says in which order. The
contrastive loss is no such sum; `gradient_cache` takes its batches in chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Bool, Int
from flamingo_jax.data.schema import Batch


class Parts(NamedTuple):
    """A batch in parts, of which the losses and metrics sum up to those of the batch.

    Attributes:
      number: of parts.
      arguments: part i -> (rows, key, ...), the arguments of the loss after the weights.
    """

    number: int
    arguments: Callable[[Array | int], tuple[Any, ...]]


Split = Callable[[Any, Array], Parts]
Total = Callable[[Batch[Array]], Array]  # what the loss of a batch is divided by


def whole(batch: Any, rng: Array) -> Parts:
    """Returns a batch as one part."""
    return Parts(1, lambda number: (batch, rng))


def split(
    batch: Batch[Array],
    rng: Array,
    *,
    num_shards: int,
    total: Total | None,
) -> Parts:
    """Returns the parts (rows, keys, divisor of the batch) of a batch; one part is `whole`.

    The keys are one for each frame of the chunk's pool: those that the whole batch would draw from
    `rng`, so that random numbers do not depend on the number of chunks.

    Args:
        batch: in `batch.chunks` chunks.
        rng: key of the batch.
        num_shards: data shards of the batch.
        total: returns the divisor of a batch; None: losses are not divided.
    """
    number = batch.chunks
    if number == 1:
        return whole(batch, rng)
    keys = jax.random.split(rng, batch.frame_mask.shape)
    own = by_chunk((dataclasses.replace(batch, chunks=1), keys), number, num_shards=num_shards)
    places = _places(own[0].frame_mask)
    # the keys of a shard's pool, of all its chunks
    of_shard = keys.reshape(num_shards, -1, keys.shape[1])
    divisor = None if total is None else total(batch)

    def arguments(i: Array | int) -> tuple[Batch[Array], Array, Array | None]:
        place = jax.lax.dynamic_index_in_dim(places, i, axis=1, keepdims=False)
        drawn = jax.vmap(lambda keys, place: keys[place])(of_shard, place)
        return chunk(own[0], i), drawn.reshape(-1), divisor

    return Parts(number, arguments)


def by_chunk(rows: Any, number: int, *, num_shards: int) -> Any:
    """Reshapes each array from [S * k * b, ...] to [S, k, b, ...] for S data shards, k chunks.

    Args:
        rows: tree of arrays.
        number: k.
        num_shards: S.
    """

    def cut(leaf: Array) -> Array:
        return leaf.reshape(num_shards, number, len(leaf) // (num_shards * number), *leaf.shape[1:])

    return jax.tree.map(cut, rows)


def chunk(rows: Any, i: Array | int) -> Any:
    """Returns chunk i, arrays [S * b, ...], of what `by_chunk` returned."""

    def part(leaf: Array) -> Array:
        chosen = jax.lax.dynamic_index_in_dim(leaf, i, axis=1, keepdims=False)
        return chosen.reshape(leaf.shape[0] * leaf.shape[2], *leaf.shape[3:])

    return jax.tree.map(part, rows)


def _places(
    frame_mask: Bool[Array, "S k m F"] | Int[Array, "S k m F"],
) -> Int[Array, "S k m"]:
    """Returns where each visual input is in its shard's pool if the batch is one chunk.

    There the visual inputs of all rows follow one another. For unused rows of a pool the result is
    any row.
    """
    used = jnp.sum(jnp.any(frame_mask, axis=3), axis=2)
    before = jnp.cumsum(used, axis=1) - used
    return before[:, :, None] + jnp.arange(frame_mask.shape[2])[None, None, :]
