"""How prompts are answered: the settings of `Flamingo`, of evaluation and of the two encoders."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flamingo_jax.inference.methods import MAX_NEW_TOKENS, BeamSearch, Ends, Greedy, Method, Sample
from flamingo_jax.inference.score import Normalise
from flamingo_jax.inference.visuals import VIDEO_FRAMES, VIDEO_RATE


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
    normalise: Normalise = "sum"
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
        for name in ("images_per_pass", "candidates_per_pass", "video_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"inference.{name} is {getattr(self, name)}; expected at least 1.")
        try:
            self._methods()
        except ValueError as error:
            raise ValueError(f"inference: {error}") from error

    @property
    def method(self) -> Method:
        """The object that `decoding` and the settings of that way of decoding describe."""
        return self._methods()[self.decoding]

    def _methods(self) -> dict[str, Method]:
        """All methods, each with its settings; they check the ranges."""
        return {
            "greedy": Greedy(self.max_new_tokens),
            "beam": BeamSearch(
                self.beams, self.length_penalty, self.beam_ends, self.max_new_tokens
            ),
            "sample": Sample(self.temperature, self.top_p, self.seed, self.max_new_tokens),
        }
