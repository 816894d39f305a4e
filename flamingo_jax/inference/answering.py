"""The programs that read a batch of prompts, decode answers and score candidates.

keys and values of a prefix --+
prompts, latents -------------+--> prefill --> decoding, scores
                                      |
                                      +--> keys and values, for later prompts

`read_and_answer` does it at once; `read_and_begin` and `go_on` decode a few tokens at a time.
"""

from __future__ import annotations

import functools
from typing import Any

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Int
from flamingo_jax.core.precision import dtype_of
from flamingo_jax.core.stack import is_unrolled
from flamingo_jax.core.trees import Params
from flamingo_jax.inference import decode
from flamingo_jax.inference.methods import BeamSearch, Method
from flamingo_jax.inference.score import Normalise, score
from flamingo_jax.models import cache as cache_lib
from flamingo_jax.models.api import Model
from flamingo_jax.models.cache import Media, Rows


def read_and_answer(
    params: Params,
    media: Media | None,
    tokens: Int[Array, "B L"],
    length: Int[Array, "B"],
    media_index: Int[Array, "B L"],
    candidates: tuple[Int[Array, "B C T"], Int[Array, "B C"]] | None,
    sampling: tuple[Array, Array, Array] | None,
    cached: tuple[Rows, Int[Array, "B"]] | None = None,
    *,
    model: Model,
    method: Method | None,
    stop: tuple[int, ...],
    pad_id: int,
    chunk: tuple[int, int] | None,
    normalise: Normalise,
    candidates_per_pass: int,
    keep: tuple[int, int] | None = None,
) -> tuple[decode.Decoded | None, Float[Array, "B C"] | None, Rows | None]:
    """Reads prompts once, then decodes answers and scores candidates from the same cache.

    Args:
        params: the weights; the cache has their dtype, and is unrolled if they are.
        media: latents of the visuals; None for a language model.
        tokens: the prompts, or what follows their cached prefixes.
        length: tokens of each.
        media_index: phi of each token.
        candidates: (tokens, lengths) to be scored (`score.score`), or None.
        sampling: the fields of `decode.Sampling`, or None if `method` is not a `Sample`.
        cached: the prefix of each prompt that was read before: (its keys and values, from
            `Cache.first_tokens`; its number of tokens). None = there is none.
        model: the model.
        method: how answers are chosen; None = nothing is generated.
        stop: ids that end an answer.
        pad_id: the padding token.
        chunk: of the cross-attention in the prefill (`models.api.Model.extend`).
        normalise: of scores.
        candidates_per_pass: candidates of one prompt scored together.
        keep: the arguments of `Cache.first_tokens`, to return keys and values of the first prompt;
            None = they are not returned.

    Returns:
        (answers, scores, keys and values of the first prompt), each of them or None.
    """
    new_tokens = method.max_new_tokens if method else 1
    room = max(new_tokens, 1 if candidates is None else candidates[0].shape[2])
    prompts = (media, tokens, length, media_index, cached)
    extend, prefix = _read(params, *prompts, model=model, room=room, chunk=chunk)
    ends: dict[str, Any] = {"stop": stop, "pad_id": pad_id}
    decoded = scores = None
    if isinstance(method, BeamSearch):
        decoded = decode.beam_search(extend, prefix, method, **ends)
    elif sampling is not None:
        decoded = decode.sample(
            extend, prefix, decode.Sampling(*sampling), max_new_tokens=new_tokens, **ends
        )
    elif method is not None:
        decoded = decode.greedy(extend, prefix, max_new_tokens=new_tokens, **ends)
    if candidates is not None:
        scores = score(
            extend, prefix, *candidates, normalise=normalise, per_pass=candidates_per_pass
        )
    return decoded, scores, None if keep is None else prefix.cache.first_tokens(*keep)


def read_and_begin(
    params: Params,
    media: Media | None,
    tokens: Int[Array, "B L"],
    length: Int[Array, "B"],
    media_index: Int[Array, "B L"],
    sampling: tuple[Array, Array, Array] | None,
    cached: tuple[Rows, Int[Array, "B"]] | None = None,
    *,
    model: Model,
    room: int,
    stop: tuple[int, ...],
    pad_id: int,
    chunk: tuple[int, int] | None,
    keep: tuple[int, int] | None = None,
) -> tuple[decode.Decoding, Rows | None]:
    """Reads prompts, and chooses the first token of each answer; `go_on` chooses the others.

    Args:
        params: as for `read_and_answer`, and so are the others.
        media: latents.
        tokens: the prompts.
        length: tokens of each.
        media_index: phi.
        sampling: the fields of `decode.Sampling`; None = all answers are greedy.
        cached: prefixes.
        model: the model.
        room: the most tokens of an answer.
        stop: ids that end an answer.
        pad_id: the padding token.
        chunk: of the cross-attention.
        keep: of the first prompt.

    Returns:
        (the answers so far, keys and values of the first prompt or None).
    """
    prompts = (media, tokens, length, media_index, cached)
    _, prefix = _read(params, *prompts, model=model, room=room, chunk=chunk)
    begun = decode.begin(prefix, _pick(sampling), max_new_tokens=room, stop=stop, pad_id=pad_id)
    return begun, None if keep is None else prefix.cache.first_tokens(*keep)


def go_on(
    params: Params,
    progress: decode.Decoding,
    sampling: tuple[Array, Array, Array] | None,
    ended: Bool[Array, "B"],
    until: Int[Array, ""],
    *,
    model: Model,
    stop: tuple[int, ...],
    pad_id: int,
) -> decode.Decoding:
    """Decodes until each answer has `until` tokens; those that have `ended` get no more."""
    extend = functools.partial(model.extend, params)
    progress = progress._replace(done=progress.done | ended)
    pick = _pick(sampling)
    return decode.advance(extend, progress, pick, until=until, stop=stop, pad_id=pad_id)


def _pick(sampling: tuple[Array, Array, Array] | None) -> decode.Pick:
    if sampling is None:
        return decode.most_probable
    return decode.drawn_by(decode.Sampling(*sampling))


def _read(
    params: Params,
    media: Media | None,
    tokens: Int[Array, "B L"],
    length: Int[Array, "B"],
    media_index: Int[Array, "B L"],
    cached: tuple[Rows, Int[Array, "B"]] | None,
    *,
    model: Model,
    room: int,
    chunk: tuple[int, int] | None,
) -> tuple[decode.Extend, decode.Prefix]:
    """Returns (the model, the state after the prompts), with a cache for `room` more tokens."""
    extend = functools.partial(model.extend, params)
    size = tokens.shape[1] + room + (0 if cached is None else cache_lib.length_of(cached[0]))
    cache = model.empty_cache(tokens.shape[0], size, dtype_of(params), params)
    cache = cache.map_with_axes(lambda leaf, axes: constrain(leaf, *axes))
    cache = cache.unrolled() if is_unrolled(params) else cache
    start = None
    if cached is not None:
        rows, start = cached
        cache = cache.with_prefix(rows)
    return extend, decode.prefill(extend, cache, tokens, length, media_index, media, chunk, start)
