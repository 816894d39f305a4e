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


def in_chunks(
    embed: Callable[[trees.Params, Any], Any],
    params: trees.Params,
    rows: Any,
    *,
    chunk: int,
    num_shards: int,
) -> Any:
    """Returns embed(params, rows); its gradient is computed chunk by chunk.

    Args:
        embed: embed(params, rows) -> tree of arrays. The result for a row must depend on that row
            alone, randomness included.
        params: weights. Their gradient is summed over chunks in float32, then cast to their dtype.
        rows: tree of arrays; the leading axis is the rows of a batch, split evenly over data
            shards.
        chunk: rows of each data shard to embed at a time. 0 embeds all rows at once and keeps all
            activations.
        num_shards: number of data shards.

    Returns:
        Tree of arrays with one row for each row of the batch, in the same order.

    Raises:
        ConfigError: if `chunk` does not divide the rows of a shard.
    """
    total = len(jax.tree.leaves(rows)[0])
    per_shard = total // num_shards
    if not chunk:
        return embed(params, rows)
    if total % num_shards or per_shard % chunk:
        raise ConfigError(
            f"config.model.contrastive.chunk is {chunk}, and a batch of {total} rows on "
            f"{num_shards} data shards has {total / num_shards:g} on each; expected a divisor of "
            "that, or 0 for all rows at once."
        )
    # A chunk takes rows of every shard, so that no row moves to another device.
    by_chunk = jax.tree.map(lambda leaf: leaf.reshape(num_shards, -1, chunk, *leaf.shape[1:]), rows)
    # the gradient is summed over chunks in the dtype of these
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    def embed_chunk(number: jax.Array) -> Any:
        def part(leaf: jax.Array) -> jax.Array:
            chosen = jax.lax.dynamic_index_in_dim(leaf, number, axis=1, keepdims=False)
            return chosen.reshape(-1, *leaf.shape[3:])

        weights = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), exact, params)
        return embed(weights, jax.tree.map(part, by_chunk))

    # prevent_cse guards recomputation from being merged with the first pass; not needed in a loop.
    embed_again = jax.checkpoint(embed_chunk, prevent_cse=False)
    by_number = jax.lax.map(embed_again, jnp.arange(per_shard // chunk))

    def in_order(leaf: jax.Array) -> jax.Array:
        split = leaf.reshape(-1, num_shards, chunk, *leaf.shape[2:])
        return jnp.moveaxis(split, 0, 1).reshape(total, *leaf.shape[2:])

    return jax.tree.map(in_order, by_number)
