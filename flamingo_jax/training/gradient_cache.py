"""Gradient caching: a large contrastive batch in the memory of one chunk of it.

Gao et al. 2021 (arXiv 2101.06983). Each chunk of rows is embedded twice:

    1. chunk --embed, keep no activations--> embeddings of the whole batch --loss-->
       gradient of each embedding
    2. chunk --embed again, with its part of that gradient--> gradient of the weights,
       summed over chunks in float32

The loss couples all rows of a batch, so the gradients of parts of the batch cannot simply be added.
But the loss depends on a row through its embedding alone. The price is a second forward pass. Only
the embeddings and their similarity matrix grow with the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError
from flamingo_jax.training import chunks


def in_chunks(
    embed: Callable[[trees.Params, Any], Any],
    params: trees.Params,
    rows: Any,
    *,
    number: int,
    num_shards: int,
) -> Any:
    """Returns embed(params, rows); its gradient is computed chunk by chunk.

    Args:
        embed: embed(params, rows) -> tree of arrays. The result for a row must depend on that row
            alone, randomness included.
        params: weights. Their gradient is summed over chunks in float32, then cast to their dtype.
        rows: tree of arrays; the leading axis is the rows of a batch, split evenly over data
            shards.
        number: of chunks; divides the rows of a data shard. 1 embeds all rows at once and keeps all
            activations.
        num_shards: number of data shards.

    Returns:
        Tree of arrays with one row for each row of the batch, in the same order.
    """
    if number == 1:
        return embed(params, rows)
    # A chunk takes rows of every shard, so that no row moves to another device.
    by_chunk = chunks.by_chunk(rows, number, num_shards=num_shards)
    # the gradient is summed over chunks in the dtype of these
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    def embed_chunk(i: jax.Array) -> Any:
        weights = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), exact, params)
        return embed(weights, chunks.chunk(by_chunk, i))

    # prevent_cse guards recomputation from being merged with the first pass; not needed in a loop.
    embed_again = jax.checkpoint(embed_chunk, prevent_cse=False)
    by_number = jax.lax.map(embed_again, jnp.arange(number))

    def in_order(leaf: jax.Array) -> jax.Array:
        split = leaf.reshape(number, num_shards, -1, *leaf.shape[2:])
        return jnp.moveaxis(split, 0, 1).reshape(-1, *leaf.shape[2:])

    return jax.tree.map(in_order, by_number)


def number_of_chunks(*, chunk: int, rows: int, num_shards: int) -> int:
    """Returns the number of chunks that `config.model.contrastive.chunk` of version 0.4.0 means.

    Args:
        chunk: rows of each data shard at a time; 0 = all.
        rows: of a batch.
        num_shards: number of data shards.

    Raises:
        ConfigError: if `chunk` does not divide the rows of a shard.
    """
    if not chunk:
        return 1
    if rows % num_shards or rows // num_shards % chunk:
        raise ConfigError(
            f"config.model.contrastive.chunk is {chunk}, and a batch of {rows} rows on "
            f"{num_shards} data shards has {rows / num_shards:g} on each; expected a divisor of "
            "that, or 0; or give config.data.datasets.NAME.chunks instead."
        )
    return rows // num_shards // chunk
