"""Gradient caching.

A contrastive batch of any size in the memory of a part of it (Gao et al. 2021, arXiv 2101.06983).

    each chunk of rows  --embed, nothing kept-->  embeddings of the whole batch  --loss-->  gradient of each embedding
    each chunk of rows  --embed once more, with its part of that gradient-->  gradient of the weights, summed in float32

The loss couples all rows of a batch, so that gradients of its parts cannot simply be added; but it
sees a row by its embedding alone. The price is a second forward pass. What grows with the batch is
the embeddings, and the similarity between them.
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
    """Returns embed(params, rows), whose gradient is computed chunk by chunk.

    Args:
        embed: embed(params, rows) -> tree of arrays; what it says of a row depends on that row
            alone, randomness included.
        params: weights; their gradient is summed over chunks in float32, and then has their dtype.
        rows: tree of arrays with the rows of a batch on the leading axis, spread evenly over data
            shards.
        chunk: rows of each data shard that are embedded at a time; 0: all of them, and all
            activations are kept.
        num_shards: data shards.

    Returns:
        Tree of arrays with one row for each row of the batch, in its order.

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
    # A part of every shard's rows, so that no row moves to another device.
    by_chunk = jax.tree.map(lambda leaf: leaf.reshape(num_shards, -1, chunk, *leaf.shape[1:]), rows)
    # the sum over chunks has the dtype of these
    exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    def embed_chunk(number: jax.Array) -> Any:
        def part(leaf: jax.Array) -> jax.Array:
            own = jax.lax.dynamic_index_in_dim(leaf, number, axis=1, keepdims=False)
            return own.reshape(-1, *leaf.shape[3:])

        weights = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), exact, params)
        return embed(weights, jax.tree.map(part, by_chunk))

    # prevent_cse: inside a loop nothing can be merged away.
    found = jax.lax.map(
        jax.checkpoint(embed_chunk, prevent_cse=False), jnp.arange(per_shard // chunk)
    )

    def in_order(leaf: jax.Array) -> jax.Array:
        split = leaf.reshape(-1, num_shards, chunk, *leaf.shape[2:])
        return jnp.moveaxis(split, 0, 1).reshape(total, *leaf.shape[2:])

    return jax.tree.map(in_order, found)
