"""`InferenceConfig`: how `Flamingo`, evaluation and the two encoders run a model."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flamingo_jax.core import ranges, seeds
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.precision import Policy
from flamingo_jax.inference import methods
from flamingo_jax.inference.methods import MAX_NEW_TOKENS, BeamSearch, Ends, Greedy, Method, Sample
from flamingo_jax.inference.score import Normalise
from flamingo_jax.inference.visuals import VIDEO_FRAMES, VIDEO_RATE


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """How answers are chosen, and the shapes that prompts are padded to.

    Attributes:
        decoding: "greedy"; "beam" search, the paper's choice for open-ended tasks; or "sample". The
            settings of each are those of the objects in `inference.methods`, which check them.
        beams: `BeamSearch.num_beams`.
        max_new_tokens: bound on an answer, `<EOC>` included.
        length_penalty: `BeamSearch.length_penalty`.
        beam_ends: `BeamSearch.ends`.
        temperature: `Sample.temperature`.
        top_p: `Sample.top_p`.
        seed: `Sample.seed`.
        normalise: a candidate's score is the "sum" or the "mean" of its tokens' log-likelihoods.
        terminate: "end_of_chunk" scores `<EOC>` as the last token of a candidate; the paper appends
            the answer alone.
        compute: dtype of activations and caches.
        frozen: "int8" puts the products of the language model and of the vision encoder into 8 bits
            while they are read (`core.precision.Policy`).
        layers: "unrolled" compiles each layer by itself, with separate weights and caches
            (`core.stack.unrolled`): a token is decoded two to three times as fast on a CPU, and
            compilation takes longer.
        lengths: prompt lengths in tokens, ascending; the last is the longest possible prompt.
        num_images: images of a prompt, ascending; by default up to 4, 8, 16, 32 shots and the
            query.
        images_per_pass: images, tiles of images or frames of videos that are encoded together, at
            least one image or video.
        candidates_per_pass: candidates of one prompt scored together.
        latents_megabytes: memory for latents of images that may come again, such as support
            examples.
        prefix_megabytes: memory on each device for keys and values of prefixes of prompts that
            may come again, such as the support examples of several queries, or a dialogue so far
            (`inference.shared_prefix`). What was used last is kept. 0 = each prompt is read whole.
        xattn_chunk: tokens of a chunk of the chunked cross-attention, which is used if it skips at
            least half of the images; 0 = never.
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
    frozen: Literal["compute", "int8"] = "compute"
    layers: Literal["scanned", "unrolled"] = "scanned"
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    num_images: tuple[int, ...] = (5, 9, 17, 33)
    images_per_pass: int = 64
    candidates_per_pass: int = 16
    latents_megabytes: int = 256
    prefix_megabytes: int = 512
    xattn_chunk: int = 64
    video_frames: int = VIDEO_FRAMES
    video_rate: float = VIDEO_RATE

    def __post_init__(self) -> None:
        ranges.check(self, methods.COUNT, "beams", "max_new_tokens", "lengths", "num_images")
        ranges.check(self, methods.COUNT, "images_per_pass", "candidates_per_pass", "video_frames")
        ranges.check(self, ranges.whole(0), "latents_megabytes", "prefix_megabytes", "xattn_chunk")
        ranges.check(self, ranges.NOT_NEGATIVE, "length_penalty")
        ranges.check(self, ranges.POSITIVE, "temperature", "video_rate")
        ranges.check(self, methods.TOP_P, "top_p")
        ranges.check(self, seeds.RANGE, "seed")
        for name in ("lengths", "num_images"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted(set(sizes)):
                raise FieldError(f"{name} is {sizes}; expected ascending sizes, at least one.")

    @property
    def policy(self) -> Policy:
        """The dtypes of the weights."""
        return Policy(self.compute, self.frozen)

    @property
    def method(self) -> Method:
        """The method that `decoding` names, with its settings."""
        most = self.max_new_tokens
        if self.decoding == "beam":
            return BeamSearch(self.beams, self.length_penalty, self.beam_ends, most)
        if self.decoding == "sample":
            return Sample(self.temperature, self.top_p, self.seed, most)
        return Greedy(most)
