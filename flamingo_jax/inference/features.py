"""Features of images from the frozen vision encoder alone: for retrieval of similar examples, and for finding near-duplicates.

images, videos --vision encoder--> grid [M F P E] --mean over places and frames--> features [M E]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.axes import laid_out
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.paths import PathLike
from flamingo_jax.core.precision import Policy
from flamingo_jax.inference import placement
from flamingo_jax.inference.api import Flamingo
from flamingo_jax.inference.engine import ALL_AXES, InferenceConfig
from flamingo_jax.inference.latents import Latents, Passes
from flamingo_jax.inference.visuals import Visual
from flamingo_jax.models.nfnet import NFNet, NFNetConfig, normalise, pool
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.training.config import ModelConfig, given


class VisionEncoder:
    """A frozen vision encoder, from images to features; images are spread over all devices.

    Attributes:
        passes: the shapes that it is compiled for.
    """

    def __init__(
        self,
        features: Callable[[Any, Array, Array], Array],
        params: trees.Params,
        passes: Passes,
        *,
        mesh: Mesh | None,
        vision: str,
    ) -> None:
        """Takes the parts as they are.

        Args:
            features: (params, frames uint8[M, F, S, S, 3], frame_mask bool[M, F]) -> float32[M, E].
            params: weights, on their devices.
            passes: shapes.
            mesh: the devices; None = one.
            vision: name of the module in `params` that is the encoder.
        """
        self._features, self._params, self._mesh, self._vision = features, params, mesh, vision
        self._layout = None if mesh is None else Layout(mesh)
        self.passes = passes
        self._read = Latents(self._encode, passes, megabytes=0)

    @classmethod
    def of(cls, model: Flamingo) -> VisionEncoder:
        """The encoder of a loaded Flamingo.

        Raises:
            CheckpointError: it is a language model.
        """
        engine = model.engine
        if engine.model.features is None or engine.image_size is None:
            raise CheckpointError(
                f"The checkpoint {model.checkpoint} is a language model and has no features of images: give one of the flamingo stage."
            )
        passes = _passes(engine.image_size, engine.config, engine.mesh)
        return cls(engine.model.features, engine.params, passes, mesh=engine.mesh, vision="flamingo/vision")

    @classmethod
    def load(
        cls, path: PathLike, towers: Any = None, *, config: InferenceConfig, mesh: Mesh | None = None
    ) -> VisionEncoder:
        """The encoder of a checkpoint of the contrastive or the flamingo stage, which is read whole.

        Args:
            path: an export, a WORKDIR, or WORKDIR/checkpoints/STEP.
            towers: where frozen towers lie that have moved.
            config: compute and shapes.
            mesh: the devices; None = one.

        Raises:
            CheckpointError: the path holds no model, or a language model.
        """
        opened = open_checkpoint(path, towers)
        if opened.kind == "language_model":
            raise CheckpointError(
                f"The checkpoint {opened.path} is a language model and has no features of images: give one of the contrastive or the flamingo stage."
            )
        vision = given(from_dict(ModelConfig, opened.model_config, where="model").vision, "vision")
        modules = trees.subtree(opened.params, f"{opened.kind}/vision")
        params = Policy(config.compute).cast({f"vision/{name}".rstrip("/"): leaves for name, leaves in modules.items()})
        if mesh is not None:
            params = jax.tree.map(lambda weight: placement.put(np.asarray(weight), mesh, ()), params)
        passes = _passes(opened.preprocessing["image_size"], config, mesh)
        return cls(_features_of(vision), params, passes, mesh=mesh, vision="vision")

    def __call__(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n E"]:
        """Features of n >= 1 images and videos, in every process.

        Raises:
            PromptError: one of them cannot be read.
        """
        return self._read(visuals)

    def fingerprint(self) -> str:
        """Tells its weights and the frames that it is given from others."""
        weights = trees.subtree(self._params, self._vision)
        passes = self.passes
        return f"{fingerprint(weights)}-{passes.image_size}-{passes.video_frames}-{passes.video_rate:g}"

    def _encode(self, frames: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        placed = (placement.put(array, self._mesh, ALL_AXES) for array in (frames, frame_mask))
        return np.asarray(placement.fetch(_encode(self._features, self._layout, self._params, *placed)))


def _passes(image_size: int, config: InferenceConfig, mesh: Mesh | None) -> Passes:
    shards = placement.num_shards(mesh, ALL_AXES)
    return Passes(image_size, config.video_frames, config.video_rate, config.images_per_pass, shards)


@functools.cache
def _features_of(config: NFNetConfig) -> Callable[[Any, Array, Array], Array]:
    """The features of an encoder that stands alone, as `models.decoder.Decoder.features` has them."""

    def see(frames: Array, frame_mask: Array, dtype: Any) -> Array:
        grid = NFNet(config, name="vision")(normalise(frames.reshape(-1, *frames.shape[2:]), dtype))
        return pool(grid.reshape(*frames.shape[:2], -1, grid.shape[-1]), frame_mask)

    transformed = hk.transform(see)
    return lambda params, frames, mask: transformed.apply(params, None, frames, mask, jax.tree.leaves(params)[0].dtype)


@functools.partial(jax.jit, static_argnames=("features", "layout"))
def _encode(features: Any, layout: Layout | None, params: Any, frames: Array, frame_mask: Array) -> Array:
    with laid_out(layout):
        return features(params, frames, frame_mask)
