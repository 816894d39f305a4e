"""Losses, and logits by token id, from the logits of the table and of the new tokens.

    base [B L V], new [B L X] --> -log p(next token) [B L-1]
                              --> logits [B T C], C = vocab_size + X

The table may be sharded by rows; the new tokens are whole on every chip.

`LossConfig` decides by what the sum over a batch is divided. The paper minimises the sum over its
datasets m of lambda_m E[-sum_l log p(y_l | ...)] (paper, 2.4, equation 2). It does not say how a
batch estimates the expectation.

    tokens    sum(w * nll) / sum(w)     the mean over the tokens that are predicted
    rows      sum(w * nll) / rows       equation 2 as printed: a row counts with all its tokens
    sum       sum(w * nll)              a batch counts with all its rows

The sums are over the whole batch, on any number of devices and in any number of chunks. With
"tokens", lambda_m weighs a mean token of dataset m, and each row counts by its share of the tokens.
So "tokens" with lambda_m is "rows" with lambda_m / (mean tokens of a row of m).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Float, Float32, Int


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


Normalisation = Literal["tokens", "rows", "sum"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss of the stages that predict tokens.

    Attributes:
      normalise: what the sum over the tokens of a dataset's batch is divided by: its "tokens", its
          "rows" (equation 2 of the paper as printed), or nothing ("sum"). The paper leaves it open.
    """

    normalise: Normalisation = "tokens"


def weighted_sum(
    nll: Float[Array, "B T"], weights: Float[Array, "B T"], divisor: Float[Array, ""] | None
) -> Float[Array, ""]:
    """Returns sum(weights * nll) / divisor in float32, or 0 if the divisor is 0.

    Args:
        nll: -log p of each token.
        weights: of the tokens.
        divisor: of the whole batch, also if these are a chunk of it. None does not divide.
    """
    total = jnp.sum(nll.astype(jnp.float32) * weights)
    return total if divisor is None else total / jnp.maximum(divisor, 1e-8)


def _tokens(weights: Float[Array, "B T"]) -> Float[Array, ""]:
    return jnp.sum(weights.astype(jnp.float32))


def _rows(weights: Float[Array, "B T"]) -> Float[Array, ""]:
    """Returns the number of rows that predict something."""
    return jnp.sum(jnp.any(weights > 0, axis=1), dtype=jnp.float32)


Divisor = Callable[[Float[Array, "B T"]], Float[Array, ""]]
# The divisors of the parts of a batch add up to that of the batch. None: there is no division.
DIVISORS: Mapping[Normalisation, Divisor | None] = {"tokens": _tokens, "rows": _rows, "sum": None}
