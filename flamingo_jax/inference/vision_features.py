"""Features of images from the frozen vision encoder alone.

For retrieval of similar examples, and for finding near-duplicates.

images, videos --vision encoder--> [M F P E] --mean over places and frames--> features [M E]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.paths import PathLike
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import ImageFit
from flamingo_jax.inference import placement
from flamingo_jax.inference.cache_of_latents import Latents, Passes
from flamingo_jax.inference.engine import ALL_AXES, InferenceConfig
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.visuals import Visual
from flamingo_jax.models import encoders
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.sharding.layout import Layout


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
        if not engine.model.sees_images or engine.image_size is None:
            raise CheckpointError(
                f"The checkpoint {model.checkpoint} is a language model and has no features of "
                "images: give one of the flamingo stage."
            )
        passes = passes_of(
            engine.image_size, engine.config, engine.mesh, image_fit=engine.image_fit
        )
        return cls(
            engine.model.features, engine.params, passes, mesh=engine.mesh, vision="flamingo/vision"
        )

    @classmethod
    def load(
        cls,
        path: PathLike,
        towers: Any = None,
        *,
        config: InferenceConfig,
        mesh: Mesh | None = None,
    ) -> VisionEncoder:
        """The encoder of a checkpoint of the contrastive or the flamingo stage, or an imported encoder; it is read whole.

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
                f"The checkpoint {opened.path} is a language model and has no features of images: "
                "give one of another stage, or an imported encoder."
            )
        encoder = from_dict(ModelConfig, opened.model_config, where="model").encoder()
        modules = trees.subtree(
            opened.params, "vision" if opened.kind == "vision" else f"{opened.kind}/vision"
        )
        params = Policy(config.compute).cast(
            {f"vision/{name}".rstrip("/"): leaves for name, leaves in modules.items()}
        )
        if mesh is not None:
            params = jax.tree.map(
                lambda weight: placement.put(np.asarray(weight), mesh, ()), params
            )
        size, fit = opened.preprocessing["image_size"], opened.preprocessing.get("image_fit", "pad")
        passes = passes_of(size, config, mesh, image_fit=fit)
        return cls(
            encoders.vision_encoder(encoder).features, params, passes, mesh=mesh, vision="vision"
        )

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
        size = f"{passes.image_size}{'' if passes.image_fit == 'pad' else passes.image_fit}"
        return f"{fingerprint(weights)}-{size}-{passes.video_frames}-{passes.video_rate:g}"

    def _encode(self, frames: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        placed = (placement.put(array, self._mesh, ALL_AXES) for array in (frames, frame_mask))
        return np.asarray(
            placement.fetch(_encode(self._features, self._layout, self._params, *placed))
        )


def passes_of(
    image_size: int, config: InferenceConfig, mesh: Mesh | None, *, image_fit: ImageFit = "pad"
) -> Passes:
    """How images go through an encoder that is spread over `mesh` (None = one device).

    Args:
        image_size: side in pixels.
        config: the settings of a run.
        mesh: the devices.
        image_fit: how an image becomes a square.
    """
    shards = placement.num_shards(mesh, ALL_AXES)
    frames, rate = config.video_frames, config.video_rate
    return Passes(image_size, frames, rate, config.images_per_pass, shards, image_fit)


@functools.partial(jax.jit, static_argnames=("features", "layout"))
def _encode(
    features: Any, layout: Layout | None, params: Any, frames: Array, frame_mask: Array
) -> Array:
    with with_layout(layout):
        return features(params, frames, frame_mask)
