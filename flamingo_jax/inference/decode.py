"""Prefill, then greedy decoding, beam search or sampling over a key/value cache (paper, Appendix A.2: 3 beams, stop at `<EOC>`).

    prompt [B, T], right padded          answer, one token at a time
    <BOS><image>Output: A cat.<EOC><image>Output:| A  dog .  <EOC> <PAD> <PAD>
    positions 0 .. length-1                      length, length+1, ...

Prompts of unequal length share a batch: row b's answer starts at position length[b]. The keys that
its padding left there are overwritten before anything attends to them, since a query sees keys at
positions up to its own.

All functions are pure and are traced under jit by their callers; the loops are `lax.while_loop`s
that end as soon as every row is finished. They see the model through one function, `extend(cache,
tokens, positions, media_index, media=None, chunk=None) -> (logits, cache)`: that of
`models.api.Model`, with the weights bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Bool, Float, Int
from flamingo_jax.inference.methods import BeamSearch
from flamingo_jax.models.cache import Media

CacheT = TypeVar("CacheT", bound="SequenceCache")


@runtime_checkable
class SequenceCache(Protocol):
    """What decoding does with a cache; `models.cache.Cache` is one."""

    def repeat(self: CacheT, times: int) -> CacheT:
        """Returns every sequence `times` times in a row."""

    def take(self: CacheT, rows: Int[Array, "B"]) -> CacheT:
        """Returns these sequences."""


@runtime_checkable
class Extend(Protocol[CacheT]):
    """The model: `models.api.Model.extend` with the weights bound."""

    def __call__(
        self,
        cache: CacheT,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        media_index: Int[Array, "B T"],
        media: Media | None = None,
        chunk: tuple[int, int] | None = None,
    ) -> tuple[Float[Array, "B T V"], CacheT]:
        """Reads the next tokens of each sequence."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix(Generic[CacheT]):
    """What the model knows after reading B prompts.

    Enough to go on in several ways without reading them again.

    Attributes:
        cache: the model's cache; axis 1 of every leaf is the batch.
        log_probs: float32[B, V] log-probabilities of the next token.
        length: int32[B] tokens read so far, the position of the next one.
        media_index: int32[B] which of its sequence's images the next token attends; 0 = none.
    """

    cache: CacheT
    log_probs: Array
    length: Array
    media_index: Array


class Decoded(NamedTuple):
    """Answers, best first (jax arrays, or numpy arrays once fetched).

    Attributes:
        tokens: int32[B, beams, T] up to and including the stop token, then padding.
        score: float32[B, beams] sum of log-probabilities, the stop token's included (divided by
            length**length_penalty).
    """

    tokens: Array
    score: Array


def prefill(
    extend: Extend[CacheT],
    cache: CacheT,
    tokens: Int[Array, "B T"],
    length: Int[Array, "B"],
    media_index: Int[Array, "B T"],
    media: Media | None = None,
    chunk: tuple[int, int] | None = None,
) -> Prefix[CacheT]:
    """Reads the prompts.

    The last token of each prompt is read a second time, alone: nothing uses the logits of the first
    pass, so the compiler drops their [B, T, V] array, and the second pass costs one decoding step.

    Args:
        extend: the model.
        cache: an empty cache of at least T positions plus what is to be decoded.
        tokens: right-padded prompts, each with at least one token.
        length: real tokens of each prompt.
        media_index: phi of each token.
        media: the latents of the images and which of them each sequence shows; None for a language
            model alone.
        chunk: (tokens, span) of the chunked cross-attention; None = the full form.

    Returns:
        The state after the prompts.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    _, cache = extend(cache, tokens, positions, media_index, media, chunk)
    last = (length - 1)[:, None]
    last_index = jnp.take_along_axis(media_index, last, axis=1)
    logits, cache = extend(cache, jnp.take_along_axis(tokens, last, axis=1), last, last_index)
    return Prefix(cache, _log_softmax(logits[:, 0]), length, last_index[:, 0])


def greedy(
    extend: Extend[CacheT],
    prefix: Prefix,
    *,
    max_new_tokens: int,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    """Takes the most probable token each time.

    Args:
        extend: the model.
        prefix: the prompts.
        max_new_tokens: static bound on the answer, stop token included.
        stop: ids that end an answer, `<EOC>` first of all.
        pad_id: fills the rest of a finished answer.

    Returns:
        One answer per prompt (beams = 1).
    """

    def most_probable(t: Array, log_probs: Array) -> Array:
        return jnp.argmax(log_probs, axis=-1)

    return _one_by_one(extend, prefix, most_probable, max_new_tokens, stop, pad_id)


class Sampling(NamedTuple):
    """How each prompt's answer is drawn.

    Attributes:
        seed: uint32[B]; a row's answer depends on its prompt and its seed alone, not on what shares
            its batch.
        temperature: float32[B] > 0; log-probabilities are divided by it.
        top_p: float32[B] in 0..1; drawn from the fewest tokens that together have this probability
            (Holtzman et al. 2020), 1 = from all.
    """

    seed: Array
    temperature: Array
    top_p: Array


def sample(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    """Draws each token from the most probable ones.

    Args:
        extend: the model.
        prefix: the prompts.
        sampling: seed, temperature and nucleus of each row.
        max_new_tokens: static bound on the answer, stop token included.
        stop: ids that end an answer.
        pad_id: fills the rest of a finished answer.

    Returns:
        One answer per prompt (beams = 1); its score is the model's own log-probability, whatever
        the temperature.
    """
    keys = jax.vmap(jax.random.key)(sampling.seed)

    def draw(t: Array, log_probs: Array) -> Array:
        scaled = _log_softmax(log_probs / sampling.temperature[:, None])
        kept = jnp.where(_nucleus(scaled, sampling.top_p), scaled, -jnp.inf)
        return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row))(
            keys, kept
        )

    return _one_by_one(extend, prefix, draw, max_new_tokens, stop, pad_id)


def _nucleus(log_probs: Float[Array, "B V"], top_p: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """The fewest tokens with probability `top_p` together.

    Always the most probable one, and all that are as probable as the last.
    """
    ordered = -jnp.sort(-log_probs, axis=-1)
    probability = jnp.exp(ordered)
    before = jnp.cumsum(probability, axis=-1) - probability
    inside = (before < top_p[:, None]).at[:, 0].set(True)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)
    return log_probs >= least[:, None]


def _one_by_one(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    pick: Callable[[Array, Array], Array],
    max_new_tokens: int,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    """Grows one answer per prompt by the token that `pick(t, log_probs float32[B, V])` names, until all have ended."""
    rows = prefix.length.shape[0]

    def choose(
        t: Array, log_probs: Array, tokens: Array, score: Array, done: Array
    ) -> tuple[Array, Array, Array]:
        token = pick(t, log_probs).astype(jnp.int32)
        gain = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
        tokens = tokens.at[:, t].set(jnp.where(done, pad_id, token))
        return tokens, jnp.where(done, score, score + gain), done | _is_in(token, stop)

    def unfinished(state: Any) -> Array:
        t, _, _, _, done = state
        return (t < max_new_tokens) & ~jnp.all(done)

    def step(state: Any) -> Any:
        t, cache, tokens, score, done = state
        position = (prefix.length + t - 1)[:, None]
        logits, cache = extend(
            cache,
            jax.lax.dynamic_slice_in_dim(tokens, t - 1, 1, axis=1),
            position,
            prefix.media_index[:, None],
        )
        return t + 1, cache, *choose(t, _log_softmax(logits[:, 0]), tokens, score, done)

    blank = jnp.full((rows, max_new_tokens), pad_id, jnp.int32)
    start = choose(jnp.int32(0), prefix.log_probs, blank, jnp.zeros(rows), jnp.zeros(rows, bool))
    _, _, tokens, score, _ = jax.lax.while_loop(
        unfinished, step, (jnp.int32(1), prefix.cache, *start)
    )
    return Decoded(tokens[:, None], score[:, None])


def beam_search(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    method: BeamSearch,
    *,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    """Keeps the `beams` best unfinished answers of each prompt, and apart from them the best finished ones.

    A row is over when its best unfinished answer cannot overtake its worst finished one any more.
    Answers that reach `max_new_tokens` without a stop token compete as they are. With as many beams
    as there are answers the search is exhaustive.

    Args:
        extend: the model.
        prefix: the prompts.
        method: its settings, all static. `ends` says which answers may end in a step, of the best
            continuations of all live ones: "any"; or those among the `beams` "best", as
            transformers' beam search has it, with which the public re-implementations were
            evaluated. Fewer short answers come of that.
        stop: ids that end an answer.
        pad_id: fills the rest of a finished answer.

    Returns:
        The `beams` best answers per prompt, best first. With fewer answers than beams the last
        scores are -inf.
    """
    beams, length_penalty = method.num_beams, method.length_penalty
    ends, max_new_tokens = method.ends, method.max_new_tokens
    rows, vocabulary = prefix.log_probs.shape
    # One answer can end in each stop token, so this many expansions hold `beams` unfinished ones
    # for sure.
    expansions = min(beams * (1 + len(stop)), beams * vocabulary)

    def select(
        t: Array, log_probs: Array, live: Decoded, done: Decoded
    ) -> tuple[Decoded, Decoded, Array]:
        """Grows every live answer by one token; `log_probs` float32[B, beams, V]."""
        total = (live.score[:, :, None] + log_probs).reshape(rows, beams * vocabulary)
        score, flat = jax.lax.top_k(total, expansions)
        parent, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
        grown = jnp.take_along_axis(live.tokens, parent[:, :, None], axis=1).at[:, :, t].set(token)
        ended = _is_in(token, stop)
        counts = ended if ends == "any" else ended & (jnp.arange(expansions) < beams)[None]
        finished = jnp.where(counts, score / (t + 1.0) ** length_penalty, -jnp.inf)
        done, _ = _best(
            beams,
            jnp.concatenate([done.tokens, grown], axis=1),
            jnp.concatenate([done.score, finished], axis=1),
        )
        live, chosen = _best(beams, grown, jnp.where(ended, -jnp.inf, score))
        return live, done, jnp.take_along_axis(parent, chosen, axis=1)

    def unfinished(state: Any) -> Array:
        t, _, live, done, _ = state
        # Log-probabilities only fall, and at full length they are divided by most.
        bound = jnp.max(live.score, axis=1) / max_new_tokens**length_penalty
        return (t < max_new_tokens) & jnp.any(bound > jnp.min(done.score, axis=1))

    def step(state: Any) -> Any:
        t, cache, live, done, parent = state
        cache = cache.take((jnp.arange(rows)[:, None] * beams + parent).reshape(-1))
        token = jax.lax.dynamic_slice_in_dim(live.tokens, t - 1, 1, axis=2).reshape(rows * beams, 1)
        position = jnp.repeat(prefix.length + t - 1, beams)[:, None]
        logits, cache = extend(
            cache, token, position, jnp.repeat(prefix.media_index, beams)[:, None]
        )
        return (
            t + 1,
            cache,
            *select(t, _log_softmax(logits[:, 0]).reshape(rows, beams, vocabulary), live, done),
        )

    blank = jnp.full((rows, beams, max_new_tokens), pad_id, jnp.int32)
    nothing = Decoded(blank, jnp.full((rows, beams), -jnp.inf))
    first = Decoded(blank, nothing.score.at[:, 0].set(0.0))  # one live answer, the empty one
    repeated = jnp.broadcast_to(prefix.log_probs[:, None], (rows, beams, vocabulary))
    state = (
        jnp.int32(1),
        prefix.cache.repeat(beams),
        *select(jnp.int32(0), repeated, first, nothing),
    )
    t, _, live, done, _ = jax.lax.while_loop(unfinished, step, state)
    cut = live.score / t.astype(jnp.float32) ** length_penalty
    best, _ = _best(
        beams,
        jnp.concatenate([done.tokens, live.tokens], axis=1),
        jnp.concatenate([done.score, cut], axis=1),
    )
    return best


def _best(
    count: int, tokens: Int[Array, "B A T"], score: Float[Array, "B A"]
) -> tuple[Decoded, Int[Array, "B count"]]:
    score, rows = jax.lax.top_k(score, count)
    return Decoded(jnp.take_along_axis(tokens, rows[:, :, None], axis=1), score), rows


def _is_in(token: Int[Array, "*shape"], ids: tuple[int, ...]) -> Bool[Array, "*shape"]:
    return jnp.isin(token, jnp.asarray(ids, jnp.int32))


def _log_softmax(logits: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
