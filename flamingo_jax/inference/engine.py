"""Answers prompts in batches of a few fixed shapes.

It encodes each distinct image once, reads each prompt once, and decodes and scores from there.

    prompts --> buckets (length, images) --> batches --> new visuals --> latents
                                                |                          |
                                                +--------> prefill <-------+
                                                              |
                                                              +--> decoding   --> tokens
                                                              +--> candidates --> scores

A prefix that several prompts share is read once, and its keys and values go into each prefill
(`shared_prefix`). Log-likelihoods are those of the whole prompt up to the rounding of sums in
another order.

A batch's shape is (rows, length, images, candidates, candidate length, length of the prefix).
Rows are independent of each other: an answer does not depend on what shares its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.core.precision import dtype_of
from flamingo_jax.core.trees import Params
from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.inference import compiled, padding, shared_prefix
from flamingo_jax.inference.answering import read_and_answer, read_and_begin
from flamingo_jax.inference.cache_of_latents import Latents, passes_of
from flamingo_jax.inference.cache_of_prefixes import CachedPrefix, PrefixCache, prefix_of
from flamingo_jax.inference.compiled import Compiled
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.identity import Identify, each_once
from flamingo_jax.inference.methods import Method, Sample, as_method
from flamingo_jax.inference.padding import PromptTooLong, Shape
from flamingo_jax.inference.prompt import PromptBatch, TokenisedPrompt, collate
from flamingo_jax.inference.request import Reply, Request
from flamingo_jax.inference.shared_prefix import Cut
from flamingo_jax.inference.token_stream import TokenStream, streamable
from flamingo_jax.models import int8
from flamingo_jax.models.api import Model
from flamingo_jax.models.cache import Media
from flamingo_jax.sharding.mesh import AXES as ALL_AXES
from flamingo_jax.sharding.mesh import BATCH_AXES

# A placeholder for prompts without visuals; no token attends it.
_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)


class Engine:
    """One model on its devices, with its cache of latents and its prefix cache.

    Engines of one `Model` share their compiled programs.

    Attributes:
        tokens_read: of prompts, so far; those of a cached prefix are not read again.
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
            image_size or 1,
            config,
            multiple=shards,
            image_fit=image_fit,
            background=background,
            max_tiles=model.max_tiles,
        )
        self._latents = Latents(self._encode, passes, megabytes=config.latents_megabytes)
        self._prefixes = PrefixCache(megabytes=config.prefix_megabytes)
        self.tokens_read = 0

    @property
    def prefix_bytes(self) -> int:
        """Bytes of the prefix cache on each device."""
        return self._prefixes.num_bytes

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
        across_calls: bool = False,
    ) -> list[Reply]:
        """Answers requests, in their order.

        Args:
            requests: prompts with their candidates; of any lengths.
            generate: whether to decode an answer. Candidates are scored if there are any.
            batch_size: prompts answered together.
            config: settings of decoding and scoring; None = the engine's.
            method: how an answer is chosen; None = as `config` says.
            across_calls: whether prefixes of earlier calls' prompts may be used. The rounding of a
                log-likelihood then depends on these calls.

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
        prompts = [request.prompt for request in requests]
        identity = each_once()
        sizes = self.sizes(requests, config, method)
        cuts = self._cuts(prompts, config, batch_size, identity, across_calls=across_calls)
        buckets: dict[tuple[Cut, int, int], list[int]] = {}
        for number, cut in enumerate(cuts):
            padded = sizes[number]
            if cut.length:
                padded = padding.of_part(shared_prefix.rest_of(prompts[number], cut.length), config)
            buckets.setdefault((cut, *padded), []).append(number)
        keep = self._room_for(prompts[0], config) if across_calls and len(prompts) == 1 else 0
        answers: dict[int, Reply] = {}
        for (cut, *size), numbers in sorted(buckets.items()):
            prefix = None
            if cut.length:
                start = shared_prefix.start_of(prompts[cut.of], cut.length)
                prefix = self._read(start, config, identity, across_calls=across_calls)
            shape = Shape(padding.num_rows(len(numbers), batch_size, shards), *size)
            for first in range(0, len(numbers), shape.rows):
                some = numbers[first : first + shape.rows]
                batch = [requests[i] for i in some]
                decoded, scores, read = self._run(batch, shape, method, config, prefix, keep=keep)
                answers.update(zip(some, self._replies(batch, decoded, scores), strict=True))
                if read is not None:
                    self._keep(read, prompts[some[0]])
        return [answers[number] for number in range(len(requests))]

    def stream(
        self,
        requests: Sequence[Request],
        methods: Sequence[Method | None],
        *,
        rows: int = 1,
        room: int | None = None,
        across_calls: bool = False,
    ) -> TokenStream:
        """Reads requests as one batch; their answers are decoded when the caller asks for more.

        The tokens are those of `answer`.

        Args:
            requests: prompts; their candidates are not looked at.
            methods: how each answer is chosen; None = as the config says.
            rows: the least rows of the batch; it has a power of two of them.
            room: the most tokens that a program is compiled for; None = of the longest answer.
            across_calls: as for `answer`. What all prompts begin with is read once, or was before.

        Raises:
            PromptError: as `answer`.
            NonFiniteError: the model gave NaN or infinity.
            ConfigError: as `answer`, or a method is beam search.
        """
        config = self.config
        chosen = [streamable(as_method(method) or config.method) for method in methods]
        prompts = [request.prompt for request in requests]
        for method in chosen:
            padding.check_sizes(len(requests), method, config.lengths[-1])
        sizes = [
            self.sizes([Request(prompt)], config, method)[0]
            for prompt, method in zip(prompts, chosen, strict=True)
        ]
        identity, prefix, keep = each_once(), None, 0
        if across_calls and config.prefix_megabytes and self.model.reads_in_parts:
            cut = self._prefixes.longest_of_all(prompts, config.lengths, identity)
            keep = self._room_for(prompts[0], config) if len(prompts) == 1 else 0
            if cut:
                start = shared_prefix.start_of(prompts[0], cut)
                prefix = self._read(start, config, identity, across_calls=True)
                rests = (shared_prefix.rest_of(each, cut) for each in prompts)
                sizes = [padding.of_part(rest, config) for rest in rests]
        shards = self.compiled.num_shards(BATCH_AXES)
        length, images = (max(size) for size in zip(*sizes, strict=True))
        rows = 1 << (max(rows, len(prompts)) - 1).bit_length()
        shape = Shape(padding.num_rows(rows, rows, shards), length, images)
        batch, (media, tokens, cached), chunk = self._collated(prompts, shape, config, prefix)
        sampling = None
        if any(isinstance(method, Sample) for method in chosen):
            drawn = padding.sampling(prompts, shape.rows, chosen)
            sampling = self.compiled.put(drawn, BATCH_AXES)
        limits = tuple(method.max_new_tokens for method in chosen)
        static: dict[str, Any] = {"model": self.model, "stop": self.stop, "pad_id": self.pad_id}
        progress, read = self.compiled.on_devices(
            read_and_begin,
            media,
            *tokens,
            sampling,
            cached,
            room=max(room or 0, *limits),
            chunk=chunk,
            keep=(keep, shards) if keep else None,
            **static,
        )
        if read is not None:
            self._keep(prefix_of(prompts[0], batch, prefix, read, alone=False), prompts[0])
        return TokenStream(self.compiled, progress, sampling, limits, static)

    def sizes(
        self, requests: Sequence[Request], config: InferenceConfig, method: Method | None
    ) -> list[tuple[int, int]]:
        """Returns the length and the number of images that each whole prompt is padded to.

        Raises:
            PromptTooLong: as `answer`.
        """
        sizes = []
        for number, request in enumerate(requests):
            prompt, who = request.prompt, f"prompt {number}"
            longest = max([method.max_new_tokens if method else 0, *map(len, request.candidates)])
            if self.context is not None and len(prompt.tokens) + longest > self.context:
                raise PromptTooLong(
                    f"{who} has {len(prompt.tokens)} tokens and its answer up to "
                    f"{longest}; the language model has positions for {self.context} in all. "
                    "Shorten the prompt, or take fewer shots."
                )
            sizes.append(padding.of_prompt(prompt, config.lengths, config.num_images, who))
        return sizes

    def _cuts(
        self,
        prompts: list[TokenisedPrompt],
        config: InferenceConfig,
        batch_size: int,
        identity: Identify,
        *,
        across_calls: bool,
    ) -> list[Cut]:
        """Returns where each prompt is cut."""
        if not (config.prefix_megabytes and self.model.reads_in_parts):
            return [shared_prefix.WHOLE] * len(prompts)
        if across_calls and len(prompts) == 1:
            length = self._prefixes.longest(prompts[0], config.lengths, identity)
            return [Cut(0, length) if length else shared_prefix.WHOLE]
        return shared_prefix.shared_cuts(
            prompts,
            ends=self.stop,
            lengths=config.lengths,
            batch_size=batch_size,
            identity=identity,
        )

    def _room_for(self, prompt: TokenisedPrompt, config: InferenceConfig) -> int:
        """Returns the length that a prompt is padded to if it is kept; 0 = it is not kept."""
        if len(prompt.tokens) <= shared_prefix.MIN_TOKENS or not self.model.reads_in_parts:
            return 0
        length, dtype = padding.of_part(prompt, config)[0], dtype_of(self.params)
        rows = jax.eval_shape(lambda: self.model.empty_cache(1, length, dtype).lm)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(rows))
        room = config.prefix_megabytes * self.compiled.num_shards(("model",)) << 20
        return length if size <= room else 0

    def _read(
        self,
        start: TokenisedPrompt,
        config: InferenceConfig,
        identity: Identify,
        *,
        across_calls: bool,
    ) -> CachedPrefix:
        """Returns a prefix of prompts, read now or earlier."""
        prefix = self._prefixes.get(start, identity, alone=not across_calls)
        if prefix is None:
            length, num_images = padding.of_part(start, config)
            shape = Shape(self.compiled.num_shards(BATCH_AXES), length, num_images)
            _, _, prefix = self._run([Request(start)], shape, None, config, keep=length)
            assert prefix is not None
            self._keep(prefix, start)
        return prefix

    def _keep(self, prefix: CachedPrefix, prompt: TokenisedPrompt) -> None:
        """Keeps what was read of a prompt, unless an image file was written anew meanwhile."""
        visuals = prompt.visuals[: len(prefix.visuals)]
        if tuple(map(each_once(), visuals)) == prefix.visuals:
            self._prefixes.keep(prefix)

    def _run(
        self,
        requests: list[Request],
        shape: Shape,
        method: Method | None,
        config: InferenceConfig,
        prefix: CachedPrefix | None = None,
        *,
        keep: int,
    ) -> tuple[Any, Any, CachedPrefix | None]:
        """Runs `read_and_answer` on one batch; returns what it does, as numpy arrays.

        Args:
            requests: of the batch.
            shape: of what is read.
            method: how answers are chosen; None = nothing is generated.
            config: settings.
            prefix: of all prompts; None = they are read whole.
            keep: length that the first prompt is padded to, which is returned too; 0 = it is not.
        """
        prompts = [request.prompt for request in requests]
        batch, read, chunk = self._collated(prompts, shape, config, prefix)
        sampling = None
        if isinstance(method, Sample):
            # The settings of sampling are inputs of the program, which serves them all.
            sampling = padding.sampling(prompts, shape.rows, [method] * len(prompts))
            method = Sample(max_new_tokens=method.max_new_tokens)
        candidates = padding.pad_candidates([one.candidates for one in requests], shape.rows)
        media, tokens, cached = read
        decoded, scores, rows = self.compiled.on_devices(
            read_and_answer,
            media,
            *tokens,
            *self.compiled.put((candidates, sampling), BATCH_AXES),
            cached,
            model=self.model,
            method=method,
            stop=self.stop,
            pad_id=self.pad_id,
            chunk=chunk,
            normalise=config.normalise,
            candidates_per_pass=config.candidates_per_pass,
            keep=(keep, self.compiled.num_shards(BATCH_AXES)) if keep else None,
        )
        decoded, scores = compiled.fetch((decoded, scores))
        alone = prefix is None and method is None and candidates is None
        kept = None if rows is None else prefix_of(prompts[0], batch, prefix, rows, alone=alone)
        return decoded, scores, kept

    def _collated(
        self,
        prompts: list[TokenisedPrompt],
        shape: Shape,
        config: InferenceConfig,
        prefix: CachedPrefix | None,
    ) -> tuple[PromptBatch, tuple[Any, Any, Any], tuple[int, int] | None]:
        """Returns (the batch, what a program reads of it, chunk of the cross-attention).

        What a program reads is (latents, (tokens, lengths, phi), prefix), on the devices.
        """
        length = 0 if prefix is None else len(prefix.tokens)
        rest = [shared_prefix.rest_of(each, length) if length else each for each in prompts]
        self.tokens_read += sum(len(each.tokens) for each in rest)
        batch = collate(rest, pad_id=self.pad_id, **shape._asdict())
        media, chunk, cached = None, None, None
        if self.image_size is not None:
            media = self._media(batch, shape)
            chunk = padding.xattn_chunk(
                batch.media_index,
                shape.num_images,
                config.xattn_chunk,
                runs=self.model.attends == "run",
            )
        if prefix is not None:
            tokens_read = np.full(shape.rows, length, np.int32)
            cached = (prefix.rows, self.compiled.put(tokens_read, BATCH_AXES))
        tokens = self.compiled.put((batch.tokens, batch.length, batch.media_index), BATCH_AXES)
        return batch, (media, tokens, cached), chunk

    def _replies(self, requests: list[Request], decoded: Any, scores: Any) -> list[Reply]:
        """Returns the answers of a batch, from arrays that have padding."""
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
