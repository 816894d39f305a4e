"""Answers prompts in batches of a few fixed shapes.

It encodes each distinct image once, reads each prompt once, and decodes and scores from there.

    prompts --> buckets (length, images) --> batches --> new visuals --> latents
                                                |                          |
                                                +--------> prefill <-------+
                                                              |
                                                              +--> decoding   --> tokens
                                                              +--> candidates --> scores

A batch's shape is (rows, length, images, candidates, candidate length). Rows are independent of
each other: an answer does not depend on what shares its batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.precision import dtype_of
from flamingo_jax.core.stack import is_unrolled
from flamingo_jax.core.trees import Params
from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.inference import compiled, decode, padding
from flamingo_jax.inference.cache_of_latents import Latents, passes_of
from flamingo_jax.inference.compiled import Compiled
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.methods import BeamSearch, Method, Sample, as_method
from flamingo_jax.inference.padding import PromptTooLong, Shape
from flamingo_jax.inference.prompt import PromptBatch, TokenisedPrompt, collate
from flamingo_jax.inference.score import Normalise, score
from flamingo_jax.models import int8
from flamingo_jax.models.api import Model
from flamingo_jax.models.cache import Media
from flamingo_jax.sharding.mesh import AXES as ALL_AXES
from flamingo_jax.sharding.mesh import BATCH_AXES

# A placeholder for prompts without visuals; no token attends it.
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One prompt to answer.

    Attributes:
        prompt: the prompt.
        candidates: token ids of each candidate to be scored.
    """

    prompt: TokenisedPrompt
    candidates: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
        tokens: the best answer without its stop token; None if nothing was generated.
        log_likelihood: the answer's score; None if nothing was generated.
        scores: of the candidates.
    """

    tokens: tuple[int, ...] | None
    log_likelihood: float | None
    scores: tuple[float, ...]


class Engine:
    """One model on its devices, with the latents of the visuals that it has encoded.

    Engines of one `Model` share their compiled programs.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        *,
        image_size: int | None,
        image_fit: ImageFit = "pad",
        background: Background = "mean",
        stop: tuple[int, ...],
        pad_id: int,
        config: InferenceConfig,
        mesh: Mesh | None = None,
        context: int | None = None,
        name: str = "",
    ) -> None:
        """Places the model on its devices.

        Args:
            model: the model's pure functions.
            params: its weights, of any dtype; they get those of `config.policy`.
            image_size: side of the images in pixels; None for a language model.
            image_fit: how an image becomes a square, as in training.
            background: what is behind transparent pixels, as in training.
            stop: ids that end an answer.
            pad_id: the padding token.
            config: settings.
            mesh: the devices: prompts are spread over its replica and data axes, visuals over all
                axes, weights over model; None = one device.
            context: the most tokens of prompt and answer together that the language model has
                positions for; None = no such bound.
            name: the checkpoint, for messages.

        Raises:
            ConfigError: the model axis of the mesh does not divide the model's heads, widths or
                vocabulary.
        """
        self.model, self.config, self.context = model, config, context
        self.image_size, self.image_fit, self.background = image_size, image_fit, background
        self.stop, self.pad_id = stop, pad_id
        cast = int8.cast(model.init, params, config.policy)
        params = compiled.split_over_model(model, cast, mesh)
        if config.layers == "unrolled":
            params = compiled.unrolled(model, params)
        self.compiled = Compiled(params, mesh, name=name)
        shards = self.compiled.num_shards(ALL_AXES)
        passes = passes_of(
            image_size or 1, config, multiple=shards, image_fit=image_fit, background=background
        )
        self._latents = Latents(self._encode, passes, megabytes=config.latents_megabytes)

    @property
    def params(self) -> Params:
        """The weights, on their devices."""
        return self.compiled.params

    def answer(
        self,
        requests: Sequence[Request],
        *,
        generate: bool = True,
        batch_size: int = 64,
        config: InferenceConfig | None = None,
        method: Method | None = None,
    ) -> list[Reply]:
        """Answers requests, in their order.

        Args:
            requests: prompts with their candidates; of any lengths.
            generate: whether to decode an answer. Candidates are scored if there are any.
            batch_size: prompts answered together.
            config: settings of decoding and scoring; None = the engine's.
            method: how an answer is chosen; None = as `config` says.

        Returns:
            One answer for each request.

        Raises:
            PromptTooLong: a prompt is longer, or has more images, than the largest bucket; or it is
                longer than the model's context.
            PromptError: an image cannot be read, or a candidate is empty.
            NonFiniteError: the model gave NaN or infinity.
            ConfigError: `method` is no method, its answers are too long, or `batch_size` is no
                number of at least 1.
        """
        config = config or self.config
        method = (as_method(method) or config.method) if generate else None
        padding.check_sizes(batch_size, method, config.lengths[-1])
        shards = self.compiled.num_shards(BATCH_AXES)
        answers: dict[int, Reply] = {}
        for bucket, numbers in sorted(self._buckets(requests, config, method).items()):
            shape = Shape(padding.num_rows(len(numbers), batch_size, shards), *bucket)
            for start in range(0, len(numbers), shape.rows):
                some = numbers[start : start + shape.rows]
                found = self._batch([requests[i] for i in some], shape, method, config)
                answers.update(zip(some, found, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _buckets(
        self, requests: Sequence[Request], config: InferenceConfig, method: Method | None
    ) -> dict[tuple[int, int], list[int]]:
        """Returns {(length, images): numbers of the requests that are padded to it}."""
        buckets: dict[tuple[int, int], list[int]] = {}
        for number, request in enumerate(requests):
            prompt, who = request.prompt, f"prompt {number}"
            longest = max([method.max_new_tokens if method else 0, *map(len, request.candidates)])
            if self.context is not None and len(prompt.tokens) + longest > self.context:
                raise PromptTooLong(
                    f"{who} has {len(prompt.tokens)} tokens and its answer up to "
                    f"{longest}; the language model has positions for {self.context} in all. "
                    "Shorten the prompt, or take fewer shots."
                )
            length = padding.round_up(
                len(prompt.tokens), config.lengths, who=who, what="tokens", field="lengths"
            )
            num_images = padding.round_up(
                len(prompt.visuals), config.num_images, who=who, what="images", field="num_images"
            )
            buckets.setdefault((length, num_images), []).append(number)
        return buckets

    def _batch(
        self,
        requests: list[Request],
        shape: Shape,
        method: Method | None,
        config: InferenceConfig,
    ) -> list[Reply]:
        prompts = [request.prompt for request in requests]
        batch = collate(prompts, pad_id=self.pad_id, **shape._asdict())
        media, chunk, sampling = None, None, None
        if self.image_size is not None:
            media = self._media(batch, shape)
            chunk = padding.xattn_chunk(batch.media_index, shape.num_images, config.xattn_chunk)
        if isinstance(method, Sample):
            # The settings of sampling are inputs of the program, which serves them all.
            sampling = padding.sampling(prompts, shape.rows, method)
            method = Sample(max_new_tokens=method.max_new_tokens)
        candidates = padding.pad_candidates([one.candidates for one in requests], shape.rows)
        rows = (batch.tokens, batch.length, batch.media_index, candidates, sampling)
        decoded, scores = self.compiled(
            read_and_answer,
            media,
            *self.compiled.put(rows, BATCH_AXES),
            model=self.model,
            method=method,
            stop=self.stop,
            pad_id=self.pad_id,
            chunk=chunk,
            normalise=config.normalise,
            candidates_per_pass=config.candidates_per_pass,
        )
        # Other answers of a beam search, and of rows without as many candidates, may have -inf.
        if decoded is not None:
            self.compiled.finite(decoded.score[: len(requests), 0], "log-likelihoods of answers")
        answers = []
        for row, request in enumerate(requests):
            best, log_likelihood = None, None
            if decoded is not None:
                best = padding.before_stop(decoded.tokens[row, 0], (*self.stop, self.pad_id))
                log_likelihood = float(decoded.score[row, 0])
            row_scores: tuple[float, ...] = ()
            if scores is not None:
                own = scores[row, : len(request.candidates)]
                row_scores = tuple(map(float, self.compiled.finite(own, "scores of candidates")))
            answers.append(Reply(best, log_likelihood, row_scores))
        return answers

    def _media(self, batch: PromptBatch, shape: Shape) -> Media:
        """The latents of a batch, padded to its largest pool so that each shape has one program."""
        latents = self._latents(batch.visuals or (_NO_IMAGE,))
        pool = padding.pad_rows(latents, shape.rows * shape.num_images)
        return Media(self.compiled.put(pool, ()), self.compiled.put(batch.media_slot, BATCH_AXES))

    def _encode(self, frames: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        """Latents [M, R, D] of frames, spread over all devices."""
        placed = self.compiled.put((frames, frame_mask), ALL_AXES)
        latents = self.compiled(self.model.encode, *placed)
        self.compiled.finite(latents[frame_mask.any(axis=1)], "latents of images")
        return latents


def read_and_answer(
    params: Params,
    media: Media | None,
    tokens: Int[Array, "B L"],
    length: Int[Array, "B"],
    media_index: Int[Array, "B L"],
    candidates: tuple[Int[Array, "B C T"], Int[Array, "B C"]] | None,
    sampling: tuple[Array, Array, Array] | None,
    *,
    model: Model,
    method: Method | None,
    stop: tuple[int, ...],
    pad_id: int,
    chunk: tuple[int, int] | None,
    normalise: Normalise,
    candidates_per_pass: int,
) -> tuple[decode.Decoded | None, Float[Array, "B C"] | None]:
    """Reads prompts once, then decodes answers and scores candidates from the same cache.

    Args:
        params: the weights; the cache has their dtype, and is unrolled if they are.
        media: latents of the visuals; None for a language model.
        tokens: the prompts.
        length: of each prompt.
        media_index: phi of each token.
        candidates: (tokens, lengths) to be scored (`score.score`), or None.
        sampling: the fields of `decode.Sampling`, or None if `method` is not a `Sample`.
        model: the model.
        method: how answers are chosen; None = nothing is generated.
        stop: ids that end an answer.
        pad_id: the padding token.
        chunk: of the cross-attention in the prefill (`models.api.Model.extend`).
        normalise: of scores.
        candidates_per_pass: candidates of one prompt scored together.

    Returns:
        (answers or None, scores or None).
    """
    extend = functools.partial(model.extend, params)
    new_tokens = method.max_new_tokens if method else 1
    room = max(new_tokens, 1 if candidates is None else candidates[0].shape[2])
    size = tokens.shape[1] + room
    cache = model.empty_cache(tokens.shape[0], size, dtype_of(params), params)
    cache = cache.map_with_axes(lambda leaf, axes: constrain(leaf, *axes))
    cache = cache.unrolled() if is_unrolled(params) else cache
    prefix = decode.prefill(extend, cache, tokens, length, media_index, media, chunk)
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
    return decoded, scores
