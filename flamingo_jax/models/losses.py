"""From the logits of the table and of the new tokens to losses and to logits by token id."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Float32, Int


def next_token_losses(
    base: Float32[Array, "B L V"],
    new: Float32[Array, "B L N"] | None,
    tokens: Int[Array, "B L"],
    vocab_size: int,
) -> Float32[Array, "B T"]:
    """-log p(tokens[:, l + 1]), T = L - 1, from the logits of the table and of the new tokens, without joining the two into one array.

    The table's rows stay sharded: the target's logit is a masked sum, and the new tokens enter
    through logsumexp. The last token predicts nothing; its logits are computed all the same, since
    L is what divides evenly over a mesh.
    """
    targets = jnp.roll(tokens, -1, axis=1)
    ids = jnp.arange(base.shape[-1], dtype=targets.dtype)
    target = jnp.sum(jnp.where(targets[:, :, None] == ids[None, None, :], base, 0.0), axis=-1)
    normaliser = jax.nn.logsumexp(base, axis=-1)
    if new is not None:
        normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(new, axis=-1))
        new_ids = vocab_size + jnp.arange(new.shape[-1], dtype=targets.dtype)
        from_new = jnp.sum(
            jnp.where(targets[:, :, None] == new_ids[None, None, :], new, 0.0), axis=-1
        )
        target = jnp.where(targets >= vocab_size, from_new, target)
    return (normaliser - target)[:, :-1]


def joined_logits(
    base: Float32[Array, "B T V"], new: Float32[Array, "B T N"] | None, vocab_size: int
) -> Float32[Array, "B T C"]:
    """Logits by token id.

    The table's rows without its padding, then the new tokens (for decoding).
    """
    base = base[..., :vocab_size]
    return base if new is None else jnp.concatenate([base, new], axis=-1)
