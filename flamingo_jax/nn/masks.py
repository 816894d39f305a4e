"""Which tokens may attend which, and where in its document a token is.

    segment     1 1 1 2 2 0      two packed documents and padding
    position    0 1 2 0 1 0

A mask is True where a query may attend a key.
"""

from __future__ import annotations

import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Bool, Int


def causal(query_positions: Int[Array, "B T"], num_keys: int) -> Bool[Array, "B T S"]:
    """Returns True where the key's position is at most the query's; key s is at position s."""
    key_positions = jnp.arange(num_keys, dtype=query_positions.dtype)
    return query_positions[:, :, None] >= key_positions[None, None, :]


def same_segment(segment: Int[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Returns True for two tokens of one packed document; padding (segment 0) attends nothing."""
    return (segment[:, :, None] == segment[:, None, :]) & (segment > 0)[:, :, None]


def positions_in_segment(segment: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns the position of each token within its document; segments are contiguous."""
    index = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=segment.dtype)[None], segment.shape)
    starts = segment[:, 1:] != segment[:, :-1]
    first = jnp.where(jnp.pad(starts, ((0, 0), (1, 0)), constant_values=True), index, 0)
    return index - _running_max(first)


def _running_max(x: Int[Array, "B L"]) -> Int[Array, "B L"]:
    until = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    return jnp.max(jnp.where(until[None], x[:, None, :], 0), axis=-1)
