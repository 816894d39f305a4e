"""Encoders as pure functions of their weights.

    contrastive       images and texts -> embeddings in one space    weights "contrastive/..."
    vision_encoder    images and videos -> features                  weights "vision/..."

`models.api.Model` is the same for models that generate text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax.numpy as jnp
from jax.typing import DTypeLike

from flamingo_jax.core.notation import Array, Bool, Float32, Int, UInt8
from flamingo_jax.core.precision import dtype_of
from flamingo_jax.core.trees import Params
from flamingo_jax.models import vision
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig
from flamingo_jax.models.vision import VisionConfig


class _TowerFunctions(NamedTuple):
    """The methods of `Contrastive` as functions of (weights, rng, ...)."""

    embed: Callable[..., tuple[Array, Array, Array]]
    embed_visuals: Callable[..., Float32[Array, "M J"]]
    embed_texts: Callable[..., Float32[Array, "B J"]]


class ContrastiveModel:
    """The two towers of the contrastive stage.

    Attributes:
        config: the joint space and the loss.
    """

    def __init__(self, model: ModelConfig) -> None:
        """Transforms the module.

        Args:
            model: its vision encoder, `text_encoder` and `contrastive` are used.

        Raises:
            ValueError: one of them is None.
        """
        self._vision = model.encoder()
        text = required(model.text_encoder, "text_encoder")
        self.config: ContrastiveConfig = required(model.contrastive, "contrastive")

        def functions() -> tuple[Callable[..., Any], _TowerFunctions]:
            towers = Contrastive(self._vision, text, self.config)

            # Haiku has an `rng` of its own
            def embed(
                frames: Array, tokens: Array, segment: Array, key: Array | None = None
            ) -> tuple[Array, Array, Array]:
                return towers(frames, tokens, segment, is_training=key is not None, rng=key)

            return embed, _TowerFunctions(embed, towers.embed_visuals, towers.embed_texts)

        self._transformed = hk.multi_transform(functions)
        self._apply: _TowerFunctions = self._transformed.apply

    def init(self, rng: Array) -> Params:
        """Returns new weights, float32."""
        frames = jnp.zeros((1, *vision.example_shape(self._vision)), jnp.uint8)
        tokens = jnp.zeros((1, 2), jnp.int32)
        return self._transformed.init(rng, frames, tokens, tokens + 1)

    def compute_form_init(self, rng: Array) -> Params:
        """Returns what `init` returns: all weights are trained, and have the stored form."""
        return self.init(rng)

    def compute_form(self, params: Params) -> Params:
        """Returns the weights unchanged."""
        return params

    def embed(
        self,
        params: Params,
        frames: UInt8[Array, "B 1 S S 3"],
        tokens: Int[Array, "B L"],
        segment: Int[Array, "B L"],
        *,
        rng: Array | None = None,
    ) -> tuple[Float32[Array, "B J"], Float32[Array, "B J"], Float32[Array, ""]]:
        """Returns (V, T, beta): the embeddings of pairs, and the inverse temperature.

        Args:
            params: the weights.
            frames: one image for each caption.
            tokens: captions.
            segment: 0 where a token is padding.
            rng: for training (stochastic depth): one key, or one for each image. None drops no
                block.
        """
        return self._apply.embed(params, None, frames, tokens, segment, rng)

    def embed_visuals(
        self, params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: Bool[Array, "M F"]
    ) -> Float32[Array, "M J"]:
        """Returns embeddings of images and videos, of length 1."""
        return self._apply.embed_visuals(params, None, frames, frame_mask, dtype_of(params))

    def embed_texts(
        self, params: Params, tokens: Int[Array, "B L"], segment: Int[Array, "B L"]
    ) -> Float32[Array, "B J"]:
        """Returns embeddings of texts, of length 1."""
        return self._apply.embed_texts(params, None, tokens, segment)


class VisionModel:
    """A vision encoder alone."""

    def __init__(self, config: VisionConfig) -> None:
        """Transforms the module."""
        self._config = config

        def functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
            def features(frames: Array, frame_mask: Array, dtype: DTypeLike) -> Array:
                grids = vision.encode_visuals(config, frames, frame_mask, dtype)
                return vision.mean_features(grids, frame_mask)

            return features, features

        self._transformed = hk.multi_transform(functions)

    def init(self, rng: Array) -> Params:
        """Returns new weights, float32."""
        frames = jnp.zeros((1, *vision.example_shape(self._config)), jnp.uint8)
        return self._transformed.init(rng, frames, jnp.ones(frames.shape[:2], bool), jnp.float32)

    def features(
        self, params: Params, frames: UInt8[Array, "M F S S 3"], frame_mask: vision.FrameMask
    ) -> Float32[Array, "M E"]:
        """Returns the mean over the places of the encoder's last grid, and over real frames."""
        return self._transformed.apply(params, None, frames, frame_mask, dtype_of(params))


# The same config gives the same model, so that programs compiled for it are found again.
@functools.lru_cache(maxsize=8)
def contrastive(model: ModelConfig) -> ContrastiveModel:
    """Returns the two towers of a model; their weights are named "contrastive/...".

    Raises:
        ValueError: the vision encoder, `text_encoder` or `contrastive` is None.
    """
    return ContrastiveModel(model)


@functools.lru_cache(maxsize=8)
def vision_encoder(config: VisionConfig) -> VisionModel:
    """Returns a vision encoder alone; its weights are named "vision/..."."""
    return VisionModel(config)
