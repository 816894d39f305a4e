"""Losses, and logits by token id, from the logits of the table and of the new tokens.

    base [B L V], new [B L X] --> -log p(next token) [B L-1]
                              --> logits [B T C], C = vocab_size + X

The table may be sharded by rows; the new tokens are whole on every chip.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Float32, Int


def next_token_losses(
    base: Float32[Array, "B L V"],
    new: Float32[Array, "B L X"] | None,
    tokens: Int[Array, "B L"],
    vocab_size: int,
) -> Float32[Array, "B T"]:
    """Returns -log p(tokens[:, l + 1]), T = L - 1, without joining the two arrays of logits.

    So the table's rows stay sharded: the target's logit is a masked sum, and the new tokens are
    added by logsumexp. The last token predicts nothing, but its logits are computed, since L
    divides evenly over a mesh and L - 1 does not.

    Args:
        base: logits of the table, padding included.
        new: logits of the new tokens; None if there are none.
        tokens: token ids.
        vocab_size: ids from here on are new tokens.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    ids = jnp.arange(base.shape[-1], dtype=targets.dtype)
    target = jnp.sum(jnp.where(targets[:, :, None] == ids[None, None, :], base, 0.0), axis=-1)
    normaliser = jax.nn.logsumexp(base, axis=-1)
    if new is not None:
        normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(new, axis=-1))
        new_ids = vocab_size + jnp.arange(new.shape[-1], dtype=targets.dtype)
        is_target = targets[:, :, None] == new_ids[None, None, :]
        from_new = jnp.sum(jnp.where(is_target, new, 0.0), axis=-1)
        target = jnp.where(targets >= vocab_size, from_new, target)
    return (normaliser - target)[:, :-1]


def joined_logits(
    base: Float32[Array, "B T V"], new: Float32[Array, "B T X"] | None, vocab_size: int
) -> Float32[Array, "B T C"]:
    """Returns logits by token id: the table's without its padding, then the new tokens'."""
    base = base[..., :vocab_size]
    return base if new is None else jnp.concatenate([base, new], axis=-1)
