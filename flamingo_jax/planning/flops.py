"""Counts model FLOPs: what an update needs, independent of how it is computed.

    each real text token:   2 per weight for the forward pass, 2 for the gradient of activations,
                            2 for the gradient of trained weights
    attention:              scores and values of the attended pairs, by the same rule
    towers on images:       the matmuls and convolutions of the traced forward pass; three times as
                            many if the tower is trained

Recomputation and padding do not count. An embedding look-up is free; a tied head counts once. Keys
and values of cross-attention count per visual token. All weights count alike, norms and biases too.
The projection of relative positions counts once for each token, as in the paper's arithmetic
(4 * 70.06 + 6 * 9.66 GFLOP per token of the 80B), although it is computed once per distance.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from flamingo_jax.core import trees
from flamingo_jax.core.params import abstract_key
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models.config import required
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.resampler import Resampler, ResamplerConfig
from flamingo_jax.models.vision import (
    VisionConfig,
    encode_visuals,
    example_shape,
    num_patches,
    output_width,
)
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.objective import Objective


@dataclasses.dataclass(frozen=True)
class Fill:
    """The real content of a batch of one dataset, without padding.

    Attributes:
      rows: rows of the batch.
      tokens: mean of the real tokens per row.
      images: visual inputs of all rows.
      frames: frames of each visual input.
    """

    rows: int
    tokens: float | int
    images: float | int
    frames: int

    @classmethod
    def full(cls, dataset: DatasetConfig, num_shards: int) -> Fill:
        """Returns the content of a batch in which all rows and the pool of images are full."""
        per_shard = dataset.batch_size // num_shards * dataset.num_visuals
        pool = per_shard if dataset.pool is None else min(dataset.pool, per_shard)
        return cls(dataset.batch_size, dataset.length, num_shards * pool, dataset.num_frames)


@dataclasses.dataclass(frozen=True)
class Needed:
    """What an update needs.

    Attributes:
      flops: by part of the model.
      tokens: real text tokens of the update.
      images: visual inputs of the update.
    """

    flops: dict[str, float | int]
    tokens: float | int
    images: float | int

    @property
    def total(self) -> float | int:
        """FLOPs of all parts."""
        return sum(self.flops.values())


def of_inference(
    config: TrainConfig, objective: Objective, fill: Fill, *, cached: int = 0, seen: int = 0
) -> Needed:
    """Returns the model FLOPs of one pass of inference, forward only, over all chips.

    Args:
        config: a resolved run of stage language_model or flamingo.
        objective: of the run.
        fill: what is read. The images are encoded in the same pass.
        cached: tokens of each row that were read before.
        seen: images of each row that were read before.
    """
    weights = _Weights(objective, forward_only=True)
    if config.stage == "language_model":
        lm = required(config.model.lm, "lm")
        parts = {"lm": _language_model(lm, weights, "lm", fill, 0.0, cached)}
    else:
        parts = _flamingo(config, weights, fill, cached, seen)
    return Needed(parts, fill.rows * fill.tokens, fill.images)


def of_update(config: TrainConfig, objective: Objective, fills: Mapping[str, Fill]) -> Needed:
    """Returns the model FLOPs of one update, over all chips.

    Args:
        config: a resolved run.
        objective: of the run; it says what is trained.
        fills: the content of the batch of each dataset that the update uses.
    """
    return counter(config, objective)(fills)


def counter(config: TrainConfig, objective: Objective) -> Callable[[Mapping[str, Fill]], Needed]:
    """Returns `of_update` of one run as a function of the fills: it traces the models only once."""
    weights = _Weights(objective)

    def count(fills: Mapping[str, Fill]) -> Needed:
        flops: dict[str, float | int] = {}
        if config.stage == "contrastive" and config.mixing == "merged":
            # Every row of the one batch is compared with the rows of all datasets.
            rows = [fill.rows for fill in fills.values()]
            flops["contrastive"] = _similarity(config, sum(rows) ** 2 - sum(n**2 for n in rows))
        for fill in fills.values():
            if config.stage == "contrastive":
                parts = _contrastive(config, weights, fill)
            elif config.stage == "language_model":
                lm = required(config.model.lm, "lm")
                parts = {"lm": _language_model(lm, weights, "lm", fill, 1.0)}
            else:
                parts = _flamingo(config, weights, fill)
            for part, number in parts.items():
                flops[part] = flops.get(part, 0.0) + number
        tokens = sum(fill.rows * fill.tokens for fill in fills.values())
        return Needed(flops, tokens, sum(fill.images for fill in fills.values()))

    return count


class _Weights:
    """The sizes of the weights by path, and which of them are trained."""

    def __init__(self, objective: Objective, *, forward_only: bool = False):
        self.backward = 0.0 if forward_only else 1.0
        shapes = jax.eval_shape(objective.model.init, abstract_key())
        sizes = {path: math.prod(leaf.shape) for path, leaf in trees.flatten(shapes).items()}
        rules = objective.rules(sizes)
        self._sizes = {path: (size, not rules[path].frozen) for path, size in sizes.items()}

    def per_use(self, pattern: str, *, without: str = "(?!)", passed: float = 1.0) -> float:
        """Returns the FLOPs of using the matching weights once.

        They include the forward pass, activation gradients and weight gradients.

        Args:
            pattern: regular expression that matches whole paths.
            without: regular expression; paths that contain it are left out.
            passed: the share of weights through which gradients flow to the layers below.
        """
        chosen = [
            entry
            for path, entry in self._sizes.items()
            if re.fullmatch(pattern, path) and not re.search(without, path)
        ]
        per_weight = lambda trained: 2.0 + self.backward * 2.0 * (passed + trained)
        return sum((size * per_weight(trained) for size, trained in chosen), 0.0)

    def trained(self, pattern: str) -> bool:
        """Returns True if a matching weight is trained."""
        return any(
            trained for path, (_, trained) in self._sizes.items() if re.fullmatch(pattern, path)
        )


def _language_model(
    lm: LMConfig, weights: _Weights, prefix: str, fill: Fill, passed: float, cached: int = 0
) -> float:
    """Returns the FLOPs of the language model on text.

    Args:
        lm: the model.
        weights: of the run.
        prefix: path of the weights.
        fill: what is read.
        passed: the share of the blocks through which gradients flow.
        cached: tokens of each row that were read before.
    """
    trained = weights.backward * weights.trained(rf"{prefix}/(embedding|head)")
    # The head, without the rows that pad its table.
    head = lm.vocab_size * lm.width * (2.0 + 2.0 * weights.backward + 2.0 * trained)
    return _blocks(lm, weights, prefix, fill, passed, cached, head=head)


def _blocks(
    lm: LMConfig,
    weights: _Weights,
    prefix: str,
    fill: Fill,
    passed: float,
    cached: int = 0,
    *,
    head: float = 0.0,
) -> float:
    """Returns the FLOPs of blocks of a language model; arguments as of `_language_model`.

    `head`: of what follows them, for each token.
    """
    passed *= weights.backward
    tables = "/(embedding|head|positions)$"
    each = weights.per_use(rf"{prefix}/.*", without=tables, passed=passed) + head
    # of all layers
    pairs = fill.rows * sum(_attended(fill.tokens, cached, window) for window in lm.windows)
    pair = 2.0 * lm.num_heads * lm.head_size
    # Both factors of scores and of values are activations.
    attention = pair * 2 * (1 + 2 * passed)
    if lm.position == "relative":
        trained = weights.backward * weights.trained(rf"{prefix}/.*/relative/w")
        attention += pair * (1 + passed + trained)
    return fill.rows * fill.tokens * each + pairs * attention


def _attended(tokens: float | int, cached: int, window: int) -> float | int:
    """Returns the number of pairs of tokens in a row of which one attends the other.

    A token attends itself and all tokens before it, or a window of these (`window` > 0).
    """
    growing = tokens if not window else min(tokens, max(window - cached, 0))
    return growing * (cached + (growing + 1) / 2) + (tokens - growing) * window


def _flamingo(
    config: TrainConfig, weights: _Weights, fill: Fill, cached: int = 0, seen: int = 0
) -> dict[str, float | int]:
    model = config.model.flamingo()
    lm, xattn, size = model.lm, model.xattn, config.data.image_size
    latents = model.num_latents
    tokens, visual = fill.rows * fill.tokens, fill.images * latents
    # Gradients flow down to the first trained layer: to the embeddings of the new tokens, to the
    # first block of an LM that is trained, or to the first xattn layer.
    whole = bool(model.new_tokens) or weights.trained("flamingo/lm/.*")
    passed = 1.0 if whole else 1.0 - xattn.offset / lm.num_layers
    grafted = 0.0
    if model.grafted is not None:
        passed = float(whole)
        grafted = _blocks(model.grafted, weights, "flamingo/grafted", fill, 1.0, cached)
    heads = xattn.num_heads or lm.num_heads
    pair = 2.0 * xattn.num_layers(lm.num_layers) * heads * (xattn.head_dim or lm.width // heads)
    attended = 1.0
    if xattn.attend == "all":
        # Images are spread evenly over the text. So a token has half of them before it.
        attended = seen + (fill.images / fill.rows + 1) / 2 if fill.images else seen
    of_images = r"/(key|value|media_norm|key_head_norm)/"
    not_of_text = of_images
    if not fill.images and not cached:  # text alone: of the layers, the dense parts are used
        attended = 0.0
        not_of_text = rf"{of_images}|/(query|query_norm|query_head_norm|out)/|/attention_gate$"
        if xattn.skip_unseen:
            not_of_text = "/"
    times = 1.0 + 2.0 * weights.backward
    vision_trained = weights.trained("flamingo/vision/.*")
    frame = vision_forward(model.vision, size)
    resampled, projected = 0, 0
    if model.resampler is not None:
        resampled, projected = resampler_forward(model.resampler, model.vision, size, fill.frames)
    # Features of a frozen encoder need no gradient.
    not_needed = 0 if vision_trained else weights.backward * projected
    return {
        "lm": _language_model(lm, weights, "flamingo/lm", fill, passed, cached)
        + tokens * weights.per_use("flamingo/new_tokens/output"),
        "xattn": grafted
        + tokens * weights.per_use("flamingo/xattn/.*", without=not_of_text)
        + visual * weights.per_use(f"flamingo/xattn/.*{of_images}.*")
        + visual * weights.per_use("flamingo/media/.*")
        + tokens * latents * attended * pair * 2 * times,
        "resampler": fill.images * (times * resampled - not_needed),
        "vision": fill.images * fill.frames * frame * (times if vision_trained else 1.0),
    }


def _contrastive(config: TrainConfig, weights: _Weights, fill: Fill) -> dict[str, float | int]:
    text = required(config.model.text_encoder, "text_encoder")
    tables = "/(embedding|positions|types)$"
    pairs = fill.rows * fill.tokens**2 * 2.0 * text.num_layers * text.width
    image = vision_forward(config.model.encoder(), config.data.image_size)
    return {
        "vision": 3.0 * fill.images * image,
        "text": fill.rows * fill.tokens * weights.per_use("contrastive/text/.*", without=tables)
        + pairs * 2 * 3,
        "contrastive": fill.rows * weights.per_use(r"contrastive/\w+_projection/.*")
        + _similarity(config, fill.rows**2),
    }


def _similarity(config: TrainConfig, pairs: int) -> float:
    """Returns the FLOPs of the similarities of `pairs` pairs of a text and an image."""
    return 3 * 2.0 * pairs * required(config.model.contrastive, "contrastive").joint_dim


@functools.lru_cache(maxsize=8)
def vision_forward(config: VisionConfig, image_size: int) -> int:
    """Returns the FLOPs of encoding one frame: 2 x 116.55e9 for NFNet-F6 at 320 x 320 pixels.

    Tiles of an image are encoded together: it is the share of one of them.
    """
    number = example_shape(config)[0]
    frames = jax.ShapeDtypeStruct((1, number, image_size, image_size, 3), jnp.uint8)
    mask = jax.ShapeDtypeStruct(frames.shape[:2], jnp.bool_)
    encode = lambda frames, mask: encode_visuals(config, frames, mask, jnp.float32)
    return traced(encode, frames, mask) // number


@functools.lru_cache(maxsize=8)
def resampler_forward(
    config: ResamplerConfig, vision: VisionConfig, image_size: int, num_frames: int
) -> tuple[int, int]:
    """Returns the FLOPs of the resampler for one visual input, in all and of the input projection.

    The second number is 0 if the resampler has no input projection.
    """
    features = _abstract(1, num_frames, num_patches(vision, image_size), output_width(vision))
    mask = jax.ShapeDtypeStruct((1, num_frames), jnp.bool_)
    whole = traced(lambda x, visible: Resampler(config)(x, visible), features, mask)
    return whole, 2 * math.prod(features.shape) * config.width if config.input_projection else 0


def _abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def traced(function: Callable[..., Any], *args: jax.ShapeDtypeStruct) -> int:
    """Returns the FLOPs of the matmuls and convolutions in the forward pass of a Haiku function."""
    model = hk.transform(function)
    key = abstract_key()
    weights = jax.eval_shape(model.init, key, *args)
    return _count(jax.make_jaxpr(lambda w, *x: model.apply(w, None, *x))(weights, *args).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(_count(inner) for inner in jaxprs_in_params(equation.params))
    return total
