"""Answers prompts in batches of a few fixed shapes.

Encode each distinct image once, read each prompt once, then decode and score from there.

    prompts -> buckets (length, images) -> batches -> [ images not seen before -> latents ] -> prefill -+-> greedy or beam search -> tokens
                                                                                                        +-> candidates            -> scores

A batch's shape is (rows, length, images, candidates, candidate length), each rounded up to one of a
few sizes, so that the number of compiled programs is bounded. Rows are independent of each other:
an answer does not depend on what shares its batch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import ImageFit
from flamingo_jax.inference import decode, placement, score
from flamingo_jax.inference.cache_of_latents import Latents, Passes
from flamingo_jax.inference.methods import MAX_NEW_TOKENS, BeamSearch, Ends, Greedy, Method, Sample
from flamingo_jax.inference.prompt import PromptError, TokenisedPrompt, collate
from flamingo_jax.inference.visuals import VIDEO_FRAMES, VIDEO_RATE
from flamingo_jax.models.api import Model
from flamingo_jax.models.cache import Media
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import AXES as ALL_AXES
from flamingo_jax.sharding.mesh import BATCH_AXES

# stands in the pool of prompts without images; no slot points at it
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


class PromptTooLong(PromptError):
    """A prompt with more tokens or images than the model, or the largest of the configured shapes, has room for."""


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How prompts are answered, and the shapes that they are padded to.

    Attributes:
        decoding: "greedy"; "beam" search, the paper's choice for open-ended tasks; or "sample",
            drawn from the most probable tokens.
        beams: answers kept by beam search.
        max_new_tokens: bound on an answer, `<EOC>` included.
        length_penalty: beam search orders answers by score / length**length_penalty; 0 = off.
        beam_ends: which answers may end in a step of beam search; "best" as in transformers
            (`decode.beam_search`).
        temperature: of sampling; log-probabilities are divided by it.
        top_p: of sampling; tokens are drawn from the fewest that together have this probability, 1
            = from all.
        seed: of sampling; an answer depends on it, on the prompt and on the model, not on what
            shares the batch.
        normalise: a candidate's score is the "sum" or the "mean" of its tokens' log-likelihoods.
        terminate: whether `<EOC>` counts as the last token of a candidate; the paper appends the
            answer alone.
        compute: dtype of activations and caches.
        layers: "unrolled" compiles each layer by itself, with its own weights and cache
            (`core.stack.unrolled`): a token is decoded two to three times as fast on a CPU, and
            compilation takes longer.
        lengths: prompt lengths in tokens, ascending; the last is the longest possible prompt.
        num_images: images per prompt, ascending; by default up to 4, 8, 16, 32 shots and the query.
        images_per_pass: images encoded together, or frames of videos (at least one video).
        candidates_per_pass: candidates of one prompt scored together.
        latents_megabytes: memory for the latents of images that may come again (support examples
            do).
        xattn_chunk: tokens per chunk of the chunked cross-attention, taken where it spares at least
            half of the images; 0 = never.
        video_frames: the most frames of a video.
        video_rate: frames per second of a video file.
    """

    decoding: Literal["greedy", "beam", "sample"] = "greedy"
    beams: int = 3
    max_new_tokens: int = MAX_NEW_TOKENS
    length_penalty: float = 0.0
    beam_ends: Ends = "any"
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    normalise: score.Normalise = "sum"
    terminate: Literal["nothing", "end_of_chunk"] = "nothing"
    compute: Literal["float32", "bfloat16"] = "float32"
    layers: Literal["scanned", "unrolled"] = "scanned"
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    num_images: tuple[int, ...] = (5, 9, 17, 33)
    images_per_pass: int = 64
    candidates_per_pass: int = 16
    latents_megabytes: int = 256
    xattn_chunk: int = 64
    video_frames: int = VIDEO_FRAMES
    video_rate: float = VIDEO_RATE

    def __post_init__(self) -> None:
        for name in ("lengths", "num_images"):
            sizes = getattr(self, name)
            if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
                raise ValueError(f"inference.{name} is {sizes}; expected ascending sizes >= 1.")
        for name in (
            "beams",
            "max_new_tokens",
            "images_per_pass",
            "candidates_per_pass",
            "video_frames",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"inference.{name} is {getattr(self, name)}; expected at least 1.")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"inference.temperature is {self.temperature} and inference.top_p {self.top_p}; "
                "expected temperature > 0 and 0 < top_p <= 1. For the most probable token each "
                "time, set decoding to 'greedy'."
            )

    @property
    def method(self) -> Method:
        """The object that `decoding` and the settings of that way of decoding describe."""
        if self.decoding == "beam":
            return BeamSearch(self.beams, self.length_penalty, self.beam_ends, self.max_new_tokens)
        if self.decoding == "sample":
            return Sample(self.temperature, self.top_p, self.seed, self.max_new_tokens)
        return Greedy(self.max_new_tokens)


@dataclasses.dataclass(frozen=True)
class Program:
    """What of the settings is compiled in, beside the shapes.

    Fields as in InferenceConfig, Engine and `decode.prefill`.

    `method` is None where nothing is generated. A `Sample` has the defaults of what is an argument
    of the compiled program.
    """

    method: Method | None
    normalise: score.Normalise
    candidates_per_pass: int
    compute: str
    layers: str
    stop: tuple[int, ...]
    pad_id: int
    chunk: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One prompt to answer.

    Attributes:
        prompt: the prompt.
        candidates: token ids of each candidate; empty if none is to be scored.
    """

    prompt: TokenisedPrompt
    candidates: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came of one request.

    Attributes:
        tokens: the best answer without its stop token; None if nothing was generated.
        log_likelihood: its score.
        scores: of the candidates.
    """

    tokens: tuple[int, ...] | None
    log_likelihood: float | None
    scores: tuple[float, ...]


class Engine:
    """One model, and the latents of the images that it has seen.

    Engines of one `Model` share their compiled programs.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        *,
        image_size: int | None,
        image_fit: ImageFit = "pad",
        stop: tuple[int, ...],
        pad_id: int,
        config: InferenceConfig,
        mesh: Mesh | None = None,
        context: int | None = None,
    ) -> None:
        """Places the model on its devices.

        Args:
            model: the model's pure functions.
            params: its weights, of any dtype; they are cast to `config.compute`.
            image_size: side of the images in pixels; None for a language model alone.
            image_fit: how an image becomes a square, as in training.
            stop: ids that end an answer.
            pad_id: the padding token.
            config: settings.
            mesh: prompts are spread over its replica and data axes, images over all, weights over
                model; None = one device.
            context: positions that the language model has, prompt and answer together; None = no
                bound of its own.

        Raises:
            ConfigError: the model axis of the mesh does not divide the model's heads, widths or
                vocabulary.
        """
        self.model, self.config, self.mesh, self.context = model, config, mesh, context
        self.image_size, self.image_fit, self.stop, self.pad_id = (
            image_size,
            image_fit,
            stop,
            pad_id,
        )
        params = Policy(config.compute).cast(params)
        self.params = params if mesh is None else placement.weights(model, params, mesh)
        if config.layers == "unrolled":
            self.params = placement.unrolled(model, self.params)
        self._layout = None if mesh is None else Layout(mesh)
        shards = placement.num_shards(mesh, ALL_AXES)
        size, frames, rate = image_size or 1, config.video_frames, config.video_rate
        passes = Passes(size, frames, rate, config.images_per_pass, shards, image_fit)
        self._latents = Latents(self._encoded, passes, megabytes=config.latents_megabytes)

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
            generate: whether to decode an answer (candidates are scored wherever there are any).
            batch_size: prompts answered together.
            config: decoding and scoring settings other than the engine's own.
            method: how an answer is chosen; None = as `config` says.

        Returns:
            One answer per request.

        Raises:
            PromptTooLong: a prompt is longer, or has more images, than the largest bucket; or is
                longer than the model's context.
            PromptError: an image cannot be read, or a candidate is empty.
        """
        config = config or self.config
        method = (method or config.method) if generate else None
        answers: dict[int, Reply] = {}
        for (length, num_images), numbers in sorted(
            self._buckets(requests, config, method).items()
        ):
            rows = self._rows(len(numbers), batch_size)
            for start in range(0, len(numbers), rows):
                chosen = numbers[start : start + rows]
                shape = {"rows": rows, "length": length, "num_images": num_images}
                answers.update(
                    zip(
                        chosen,
                        self._batch([requests[i] for i in chosen], shape, method, config),
                        strict=True,
                    )
                )
        return [answers[number] for number in range(len(requests))]

    def _buckets(
        self, requests: Sequence[Request], config: InferenceConfig, method: Method | None
    ) -> dict[tuple[int, int], list[int]]:
        buckets: dict[tuple[int, int], list[int]] = {}
        for number, request in enumerate(requests):
            prompt = request.prompt
            if prompt.visuals and self.image_size is None:
                raise PromptError(
                    f"prompt {number} has {len(prompt.visuals)} image(s), but this checkpoint is a "
                    "language model: give it text alone."
                )
            longest = max([method.max_new_tokens if method else 0, *map(len, request.candidates)])
            if self.context is not None and len(prompt.tokens) + longest > self.context:
                raise PromptTooLong(
                    f"prompt {number} has {len(prompt.tokens)} tokens and its answer up to "
                    f"{longest}; the language model has positions for {self.context} in all. "
                    "Shorten the prompt, or take fewer shots."
                )
            length = _round_up(
                len(prompt.tokens), config.lengths, f"prompt {number} has", "tokens", "lengths"
            )
            num_images = _round_up(
                len(prompt.visuals),
                config.num_images,
                f"prompt {number} has",
                "images",
                "num_images",
            )
            buckets.setdefault((length, num_images), []).append(number)
        return buckets

    def _rows(self, count: int, batch_size: int) -> int:
        """The batch size, or a power of two if fewer rows do.

        Divisible by the number of batch shards.
        """
        rows, shards = (
            min(batch_size, 1 << (count - 1).bit_length()),
            placement.num_shards(self.mesh, BATCH_AXES),
        )
        return -(-rows // shards) * shards

    def _batch(
        self,
        requests: list[Request],
        shape: dict[str, int],
        method: Method | None,
        config: InferenceConfig,
    ) -> list[Reply]:
        batch = collate([request.prompt for request in requests], pad_id=self.pad_id, **shape)
        media, chunk = None, None
        if self.image_size is not None:
            # Every batch of a shape has as large a pool as it can need, so that the shape is
            # compiled once.
            pool = _pad_rows(
                self._latents(batch.visuals or (_NO_IMAGE,)), shape["rows"] * shape["num_images"]
            )
            media = Media(
                placement.put(pool, self.mesh, ()),
                placement.put(batch.media_slot, self.mesh, BATCH_AXES),
            )
            chunk = _chunk(batch.media_index, shape["num_images"], config.xattn_chunk)
        arrays = (
            batch.tokens,
            batch.length,
            batch.media_index,
            *_pad_candidates(requests, shape["rows"]),
            _sampling(requests, shape["rows"], method) if isinstance(method, Sample) else None,
        )
        inputs = jax.tree.map(lambda array: placement.put(array, self.mesh, BATCH_AXES), arrays)
        program = Program(
            method=Sample(max_new_tokens=method.max_new_tokens)
            if isinstance(method, Sample)
            else method,
            normalise=config.normalise,
            candidates_per_pass=config.candidates_per_pass,
            compute=self.config.compute,
            layers=self.config.layers,
            stop=self.stop,
            pad_id=self.pad_id,
            chunk=chunk,
        )
        decoded, scores = placement.fetch(
            _answer(self.model, program, self._layout, self.params, media, *inputs)
        )
        answers = []
        for row, request in enumerate(requests):
            best, log_likelihood = None, None
            if decoded is not None:
                best = _before_stop(decoded.tokens[row, 0], (*self.stop, self.pad_id))
                log_likelihood = float(decoded.score[row, 0])
            row_scores = (
                () if scores is None else tuple(map(float, scores[row, : len(request.candidates)]))
            )
            answers.append(Reply(best, log_likelihood, row_scores))
        return answers

    def _encoded(self, frames: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        """Latents [M, R, D] of frames, spread over all devices."""
        spread = (placement.put(array, self.mesh, ALL_AXES) for array in (frames, frame_mask))
        return np.asarray(placement.fetch(_encode(self.model, self._layout, self.params, *spread)))


@functools.partial(jax.jit, static_argnames=("model", "layout"))
def _encode(
    model: Model, layout: Layout | None, params: Any, frames: jax.Array, frame_mask: jax.Array
) -> jax.Array:
    with with_layout(layout):
        return model.encode(params, frames, frame_mask)


@functools.partial(jax.jit, static_argnames=("model", "program", "layout"))
def _answer(
    model: Model,
    program: Program,
    layout: Layout | None,
    params: Any,
    media: Media | None,
    *inputs: Any,
) -> tuple[decode.Decoded | None, jax.Array | None]:
    with with_layout(layout):
        return _prefill_and_answer(model, program, params, media, *inputs)


def _prefill_and_answer(
    model: Model,
    program: Program,
    params: Any,
    media: Media | None,
    tokens: jax.Array,
    length: jax.Array,
    media_index: jax.Array,
    candidates: jax.Array | None,
    sizes: jax.Array | None,
    sampling: decode.Sampling | None,
) -> tuple[decode.Decoded | None, jax.Array | None]:
    """Prefill, then decoding and scoring from the same cache."""
    extend = functools.partial(model.extend, params)
    method = program.method
    room = max(
        method.max_new_tokens if method else 1, 1 if candidates is None else candidates.shape[2]
    )
    cache = model.empty_cache(
        tokens.shape[0], tokens.shape[1] + room, jnp.dtype(program.compute), params
    )
    cache = placement.spread_cache(cache)
    cache = cache.unrolled() if program.layers == "unrolled" else cache
    prefix = decode.prefill(extend, cache, tokens, length, media_index, media, program.chunk)
    decoded = scores = None
    if method is not None:
        bounds: dict[str, Any] = {
            "max_new_tokens": method.max_new_tokens,
            "stop": program.stop,
            "pad_id": program.pad_id,
        }
        if isinstance(method, BeamSearch):
            decoded = decode.beam_search(
                extend,
                prefix,
                beams=method.num_beams,
                length_penalty=method.length_penalty,
                ends=method.ends,
                **bounds,
            )
        elif sampling is not None:
            decoded = decode.sample(extend, prefix, sampling, **bounds)
        else:
            decoded = decode.greedy(extend, prefix, **bounds)
    if candidates is not None and sizes is not None:
        scores = score.score(
            extend,
            prefix,
            candidates,
            sizes,
            normalise=program.normalise,
            per_pass=program.candidates_per_pass,
        )
    return decoded, scores


def _chunk(media_index: np.ndarray, num_images: int, tokens: int) -> tuple[int, int] | None:
    """(tokens, span) of the chunked cross-attention, or None where the full form is not dearer.

    The span is a power of two.
    """
    if not tokens or media_index.shape[1] % tokens or not media_index.any():
        return None
    phi = media_index.reshape(len(media_index), -1, tokens)
    span = int((phi.max(axis=2) - np.where(phi > 0, phi, num_images + 1).min(axis=2)).max()) + 1
    span = 1 << max(span - 1, 0).bit_length()
    return (tokens, span) if 2 * span <= num_images else None


def _pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def _pad_candidates(
    requests: Sequence[Request], rows: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Candidates as int32[B, C, T] and their lengths.

    C and T are rounded up to powers of two, C generously where it costs nothing.
    """
    most = max(len(request.candidates) for request in requests)
    if not most:
        return None, None
    longest = max(len(candidate) for request in requests for candidate in request.candidates)
    count, width = (1 << (size - 1).bit_length() for size in (most, max(longest, 1)))
    count = max(count, 32) if width == 1 else count
    tokens, sizes = np.zeros((rows, count, width), np.int32), np.zeros((rows, count), np.int32)
    for row, request in enumerate(requests):
        for column, candidate in enumerate(request.candidates):
            if not candidate:
                raise PromptError(
                    f"candidate {column} is empty: there is nothing to score. Give it some text."
                )
            tokens[row, column, : len(candidate)] = candidate
            sizes[row, column] = len(candidate)
    return tokens, sizes


def _sampling(requests: Sequence[Request], rows: int, method: Sample) -> decode.Sampling:
    """Each row's seed is a hash of the method's and of the prompt's tokens.

    Equal prompts are answered equally, wherever they stand.
    """
    seeds = np.zeros(rows, np.uint32)
    for row, request in enumerate(requests):
        content = f"{method.seed}:".encode() + request.prompt.tokens.tobytes()
        seeds[row] = int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")
    all_rows = lambda value: np.full(rows, value, np.float32)
    return decode.Sampling(seeds, all_rows(method.temperature), all_rows(method.top_p))


def _before_stop(tokens: np.ndarray, ends: tuple[int, ...]) -> tuple[int, ...]:
    found = np.isin(tokens, ends)
    return tuple(int(token) for token in (tokens[: int(found.argmax())] if found.any() else tokens))


def _round_up(size: int, sizes: tuple[int, ...], who: str, what: str, field: str) -> int:
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise PromptTooLong(
        f"{who} {size} {what}; expected at most {sizes[-1]}. Shorten it, or add a size to "
        f"config.inference.{field}."
    )
