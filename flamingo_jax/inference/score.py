"""Close-ended tasks: candidates are ranked by their log-likelihood (paper, Appendix A.2).

    prompt, read once           candidates
    <BOS><image>Output:    +    A cat        score = log p(A | prompt) + log p(cat | prompt, A)
                           +    A dog        score = log p(A | prompt) + log p(dog | prompt, A)

The first token of each candidate is scored by the prompt's last log-probabilities. Only the other
tokens are read, `per_pass` candidates at a time, over a repeated cache. So candidates of one token
cost nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.inference.decode import CacheT, Extend, Prefix

Normalise = Literal["sum", "mean"]


def check_normalise(normalise: Normalise | None) -> None:
    """Raises ConfigError if `normalise` is neither one of its names nor None."""
    if normalise is not None and normalise not in get_args(Normalise):
        raise ConfigError(
            f"normalise is {normalise!r}; expected 'sum', 'mean', or None for that of the model's "
            "config."
        )


def score(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    candidates: Int[Array, "B C T"],
    length: Int[Array, "B C"],
    *,
    normalise: Normalise = "sum",
    per_pass: int = 16,
) -> Float[Array, "B C"]:
    """Returns the log-likelihood of each candidate.

    Args:
        extend: the model.
        prefix: the prompts; its cache has room for T - 1 more tokens.
        candidates: right-padded tokens.
        length: tokens of each candidate; 0 = no candidate, since prompts may have different numbers
            of them.
        normalise: "sum" over the candidate's tokens (the paper mentions no normalisation), or their
            "mean".
        per_pass: candidates of one prompt that are read together, which bounds the memory of the
            repeated cache.

    Returns:
        The scores; -inf for no candidate.
    """
    total = _first_token(prefix.log_probs, candidates[:, :, 0])
    if candidates.shape[2] > 1:
        total = total + _remaining_tokens(extend, prefix, candidates, length, per_pass)
    if normalise == "mean":
        total = total / jnp.maximum(length, 1)
    return jnp.where(length > 0, total, -jnp.inf)


def _first_token(log_probs: Float[Array, "B V"], token: Int[Array, "B C"]) -> Float[Array, "B C"]:
    return jnp.take_along_axis(log_probs, token, axis=1)


def _remaining_tokens(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    candidates: Int[Array, "B C T"],
    length: Int[Array, "B C"],
    per_pass: int,
) -> Float[Array, "B C"]:
    """Sum over the tokens from the second on, `per_pass` candidates at a time."""
    rows, count, width = candidates.shape
    per_pass = min(per_pass, count)
    passes = -(-count // per_pass)
    extra = passes * per_pass - count
    tokens = jnp.pad(candidates, ((0, 0), (0, extra), (0, 0)))
    tokens = tokens.reshape(rows, passes, per_pass, width)
    lengths = jnp.pad(length, ((0, 0), (0, extra))).reshape(rows, passes, per_pass)
    cache = prefix.cache.repeat(per_pass)
    first = jnp.repeat(prefix.length, per_pass)[:, None]
    positions = first + jnp.arange(width - 1, dtype=jnp.int32)[None]
    media_index = jnp.repeat(prefix.media_index, per_pass)[:, None]
    media_index = jnp.broadcast_to(media_index, positions.shape)

    def one_pass(chunk: tuple[Array, Array]) -> Array:
        token, real = chunk[0].reshape(rows * per_pass, width), chunk[1].reshape(rows * per_pass)
        logits, _ = extend(cache, token[:, :-1], positions, media_index)
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        gain = jnp.take_along_axis(log_probs, token[:, 1:, None], axis=2)[:, :, 0]
        counted = jnp.arange(1, width)[None] < real[:, None]
        return jnp.sum(jnp.where(counted, gain, 0.0), axis=1).reshape(rows, per_pass)

    by_pass = (jnp.moveaxis(tokens, 1, 0), jnp.moveaxis(lengths, 1, 0))
    scores = jax.lax.map(one_pass, by_pass)  # [passes, B, per_pass]
    return jnp.moveaxis(scores, 0, 1).reshape(rows, passes * per_pass)[:, :count]
