"""Who may attend whom in the text."""

from __future__ import annotations

import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Bool, Int


def causal(query_positions: Int[Array, "B T"], num_keys: int) -> Bool[Array, "B T S"]:
    """A query at position p attends the keys at positions 0..p (itself included).

    Key s stands at position s.
    """
    return (
        query_positions[:, :, None]
        >= jnp.arange(num_keys, dtype=query_positions.dtype)[None, None, :]
    )


def same_segment(segment: Int[Array, "B L"]) -> Bool[Array, "B L L"]:
    """Tokens of one packed document attend each other; padding (segment 0) attends nothing."""
    return (segment[:, :, None] == segment[:, None, :]) & (segment > 0)[:, :, None]


def positions_in_segment(segment: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Position of each token counted from the start of its own document (segments are contiguous)."""
    index = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=segment.dtype)[None], segment.shape)
    starts = segment[:, 1:] != segment[:, :-1]
    first = jnp.where(jnp.pad(starts, ((0, 0), (1, 0)), constant_values=True), index, 0)
    return index - _running_max(first)


def _running_max(x: Int[Array, "B L"]) -> Int[Array, "B L"]:
    return jnp.max(
        jnp.where(jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None], x[:, None, :], 0), axis=-1
    )
