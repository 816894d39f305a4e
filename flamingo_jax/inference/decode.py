"""Prefill, then greedy decoding, beam search or sampling with a cache.

The paper decodes by beam search with 3 beams, and stops at `<EOC>` (A.2).

    prompt [B, T], right padded                   answer, one token at a time
    <BOS><image>Output: A cat.<EOC><image>Output:| A  dog .  <EOC> <PAD> <PAD>
    positions 0 .. length-1                        length, length+1, ...

Prompts of unequal length share a batch: row b's answer starts at position length[b]. The prefill
wrote keys of padding at these positions. Each is overwritten before any token can attend it.

All functions are pure, and their callers compile them. The loops are `lax.while_loop`s that end as
soon as every row is finished. They call the model through one function, `Extend`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Bool, Float, Int
from flamingo_jax.inference.methods import BeamSearch
from flamingo_jax.models.cache import Media

CacheT = TypeVar("CacheT", bound="SequenceCache")
# Chooses the next tokens int[B]: pick(number of the token in its answer, log_probs [B, V]).
Pick: TypeAlias = "Callable[[Array, Array], Array]"


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
    """The state after reading B prompts, from which answers are decoded and candidates are scored.

    Attributes:
        cache: the model's cache.
        log_probs: float32[B, V] log-probabilities of the next token.
        length: int32[B] number of tokens read, which is the position of the next one.
        media_index: int32[B] phi of the next token; 0 = it attends no image.
    """

    cache: CacheT
    log_probs: Array
    length: Array
    media_index: Array


class Decoded(NamedTuple):
    """Answers, best first.

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
    start: Int[Array, "B"] | None = None,
) -> Prefix[CacheT]:
    """Reads the prompts, or what follows their cached prefixes.

    The last token of each prompt is read a second time, by itself. So nothing uses the logits of
    the first pass: the compiler drops the array [B, T, V], and the second pass costs one decoding
    step.

    Args:
        extend: the model.
        cache: a cache with room for T more tokens and those to be decoded.
        tokens: right-padded prompts, each with at least one token.
        length: real tokens of each prompt.
        media_index: phi of each token.
        media: the prompts' visual inputs; None for a language model.
        chunk: (tokens, span) of the chunked cross-attention; None = the full form.
        start: tokens of each prompt that the cache holds already; `tokens` are those after them.
            None = the cache is empty.

    Returns:
        The state after the prompts.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    if start is not None:
        positions = positions + start[:, None]
    _, cache = extend(cache, tokens, positions, media_index, media, chunk)
    last = (length - 1)[:, None]
    last_index = jnp.take_along_axis(media_index, last, axis=1)
    token = jnp.take_along_axis(tokens, last, axis=1)
    position = last if start is None else last + start[:, None]
    logits, cache = extend(cache, token, position, last_index)
    length = length if start is None else length + start
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
        stop: ids that end an answer, such as `<EOC>`.
        pad_id: fills the rest of a finished answer.

    Returns:
        One answer for each prompt (beams = 1).
    """
    return _one_by_one(extend, prefix, most_probable, max_new_tokens, stop, pad_id)


def most_probable(t: Array, log_probs: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The `Pick` of greedy decoding."""
    return jnp.argmax(log_probs, axis=-1)


class Sampling(NamedTuple):
    """How each prompt's answer is drawn.

    Attributes:
        seed: uint32[B]; a row's answer depends on its prompt and its seed, not on other rows.
        temperature: float32[B]; divides the log-probabilities; 0 = the most probable token each
            time.
        top_p: float32[B] in 0..1; tokens are drawn from the fewest that together have this
            probability (Holtzman et al. 2020); 1 = from all.
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
        One answer for each prompt (beams = 1). Its score is the model's log-probability, without
        the temperature.
    """
    return _one_by_one(extend, prefix, drawn_by(sampling), max_new_tokens, stop, pad_id)


def drawn_by(sampling: Sampling) -> Pick:
    """Returns the `Pick` of sampling."""
    keys = jax.vmap(jax.random.key)(sampling.seed)
    is_drawn = sampling.temperature > 0
    temperature = jnp.where(is_drawn, sampling.temperature, 1.0)

    def draw(t: Array, log_probs: Array) -> Array:
        scaled = _log_softmax(log_probs / temperature[:, None])
        kept = jnp.where(_nucleus(scaled, sampling.top_p), scaled, -jnp.inf)
        of_row = lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row)
        return jnp.where(is_drawn, jax.vmap(of_row)(keys, kept), most_probable(t, log_probs))

    return draw


def _nucleus(log_probs: Float[Array, "B V"], top_p: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """True for the fewest tokens that together have probability `top_p`.

    The most probable token is always among them, and so are ties with the least probable one.
    """
    ordered = -jnp.sort(-log_probs, axis=-1)
    probability = jnp.exp(ordered)
    before = jnp.cumsum(probability, axis=-1) - probability
    inside = (before < top_p[:, None]).at[:, 0].set(True)
    least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1)
    return log_probs >= least[:, None]


class Decoding(NamedTuple):
    """Answers of B prompts, one for each, after their first t tokens.

    Attributes:
        t: int32[] tokens of each answer so far, at least 1.
        cache: the model's cache.
        tokens: int32[B, T] the answers, then padding.
        score: float32[B] sum of log-probabilities.
        done: bool[B] whether an answer has its stop token.
        length: int32[B] tokens of the prompts.
        media_index: int32[B] phi of the answers.
    """

    t: Array
    cache: Any
    tokens: Array
    score: Array
    done: Array
    length: Array
    media_index: Array


def begin(
    prefix: Prefix[CacheT],
    pick: Pick,
    *,
    max_new_tokens: int,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoding:
    """Chooses the first token of each answer, by `pick(t, log_probs [B, V])`."""
    rows = prefix.length.shape[0]
    blank = jnp.full((rows, max_new_tokens), pad_id, jnp.int32)
    started = Decoding(
        *(jnp.int32(0), prefix.cache, blank, jnp.zeros(rows), jnp.zeros(rows, bool)),
        *(prefix.length, prefix.media_index),
    )
    return _grown(started, prefix.log_probs, pick, stop, pad_id)


def advance(
    extend: Extend[CacheT],
    progress: Decoding,
    pick: Pick,
    *,
    until: int | Int[Array, ""],
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoding:
    """Decodes until each answer has `until` tokens, or all have ended.

    In parts or at once, the tokens are the same.
    """

    def unfinished(state: Decoding) -> Array:
        return (state.t < until) & ~jnp.all(state.done)

    def step(state: Decoding) -> Decoding:
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.t - 1, 1, axis=1)
        position = (state.length + state.t - 1)[:, None]
        logits, cache = extend(state.cache, token, position, state.media_index[:, None])
        state = state._replace(cache=cache)
        return _grown(state, _log_softmax(logits[:, 0]), pick, stop, pad_id)

    return jax.lax.while_loop(unfinished, step, progress)


def _grown(
    state: Decoding, log_probs: Array, pick: Pick, stop: tuple[int, ...], pad_id: int
) -> Decoding:
    """Returns the answers with one more token."""
    token = pick(state.t, log_probs).astype(jnp.int32)
    gain = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0]
    return state._replace(
        t=state.t + 1,
        tokens=state.tokens.at[:, state.t].set(jnp.where(state.done, pad_id, token)),
        score=jnp.where(state.done, state.score, state.score + gain),
        done=state.done | _is_in(token, stop),
    )


def _one_by_one(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    pick: Pick,
    max_new_tokens: int,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    """Decodes one answer for each prompt."""
    ends: dict[str, Any] = {"stop": stop, "pad_id": pad_id}
    started = begin(prefix, pick, max_new_tokens=max_new_tokens, **ends)
    ended = advance(extend, started, pick, until=max_new_tokens, **ends)
    return Decoded(ended.tokens[:, None], ended.score[:, None])


def beam_search(
    extend: Extend[CacheT],
    prefix: Prefix[CacheT],
    method: BeamSearch,
    *,
    stop: tuple[int, ...],
    pad_id: int,
) -> Decoded:
    """Keeps the best unfinished answers of each prompt, and separately the best finished ones.

    A row is finished when its best unfinished answer can no longer overtake its worst finished one.
    Answers that reach `max_new_tokens` without a stop token compete as they are. If there are as
    many beams as possible answers, the search is exhaustive.

    Args:
        extend: the model.
        prefix: the prompts.
        method: the settings, all static. `ends` says which continuations may end in a step. "any":
            any of the best. "best": only those among the `num_beams` best. The second is the rule
            of transformers, with which the public re-implementations were evaluated. It gives
            fewer short answers.
        stop: ids that end an answer.
        pad_id: fills the rest of a finished answer.

    Returns:
        The `num_beams` best answers for each prompt. If there are fewer answers than beams, the
        last scores are -inf.
    """
    beams, length_penalty = method.num_beams, method.length_penalty
    ends, max_new_tokens = method.ends, method.max_new_tokens
    rows, vocabulary = prefix.log_probs.shape
    # Each beam has at most one continuation for each stop token, so this many continuations always
    # include `beams` unfinished ones.
    expansions = min(beams * (1 + len(stop)), beams * vocabulary)

    def select(
        t: Array, log_probs: Array, live: Decoded, done: Decoded
    ) -> tuple[Decoded, Decoded, Array]:
        """Adds a token to every live answer; `log_probs` is float32[B, beams, V]."""
        total = (live.score[:, :, None] + log_probs).reshape(rows, beams * vocabulary)
        # `top_k` puts a NaN first or last, by its sign. An infinite score is never lost, and the
        # engine refuses it.
        total = jnp.where(jnp.isnan(total), jnp.inf, total)
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
        # A score only falls from here on, and the longest answer is divided by most.
        bound = jnp.max(live.score, axis=1) / max_new_tokens**length_penalty
        return (t < max_new_tokens) & jnp.any(bound > jnp.min(done.score, axis=1))

    def step(state: Any) -> Any:
        t, cache, live, done, parent = state
        cache = cache.take((jnp.arange(rows)[:, None] * beams + parent).reshape(-1))
        token = jax.lax.dynamic_slice_in_dim(live.tokens, t - 1, 1, axis=2).reshape(rows * beams, 1)
        position = jnp.repeat(prefix.length + t - 1, beams)[:, None]
        media_index = jnp.repeat(prefix.media_index, beams)[:, None]
        logits, cache = extend(cache, token, position, media_index)
        log_probs = _log_softmax(logits[:, 0]).reshape(rows, beams, vocabulary)
        return t + 1, cache, *select(t, log_probs, live, done)

    blank = jnp.full((rows, beams, max_new_tokens), pad_id, jnp.int32)
    nothing = Decoded(blank, jnp.full((rows, beams), -jnp.inf))
    first = Decoded(blank, nothing.score.at[:, 0].set(0.0))  # one live answer, the empty one
    repeated = jnp.broadcast_to(prefix.log_probs[:, None], (rows, beams, vocabulary))
    start = select(jnp.int32(0), repeated, first, nothing)
    state = (jnp.int32(1), prefix.cache.repeat(beams), *start)
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
