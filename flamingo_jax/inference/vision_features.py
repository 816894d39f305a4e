"""Features of visuals from the frozen vision encoder, to find similar examples or near-duplicates.

    visuals --vision encoder--> [M F P E] --mean over grid and frames--> features [M E]

Visuals are spread over all devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.paths import PathLike
from flamingo_jax.inference.cache_of_latents import Latents, Passes, passes_of
from flamingo_jax.inference.compiled import Compiled, whole_on_each_device
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.visuals import Visual
from flamingo_jax.models import encoders, int8
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.vision import tiles_of
from flamingo_jax.sharding.mesh import AXES as ALL_AXES


class VisionEncoder:
    """A frozen vision encoder, compiled, from visuals to features.

    Attributes:
        passes: the shapes in which visuals are encoded.
    """

    def __init__(
        self,
        compiled: Compiled,
        features: Callable[[trees.Params, Array, Array], Array],
        passes: Passes,
        *,
        vision: str,
    ) -> None:
        """Takes the parts as they are.

        Args:
            compiled: the weights, on their devices.
            features: a model's method (params, frames uint8[M, F, S, S, 3], frame_mask bool[M, F])
                -> float32[M, E].
            passes: the shapes in which visuals are encoded.
            vision: name of the encoder's module.
        """
        self._compiled, self._features, self._vision = compiled, features, vision
        self.passes = passes
        self._read = Latents(self._encode, passes, megabytes=0)

    @classmethod
    def of(cls, model: Flamingo) -> VisionEncoder:
        """Returns the encoder of a loaded Flamingo.

        Raises:
            CheckpointError: the model is a language model.
        """
        engine = model.engine
        if not engine.model.sees_images or engine.image_size is None:
            raise CheckpointError(
                f"The checkpoint {model.checkpoint} is a language model and has no features of "
                "images: give one of the flamingo stage."
            )
        passes = passes_of(
            engine.image_size,
            engine.config,
            multiple=engine.compiled.num_shards(ALL_AXES),
            image_fit=engine.image_fit,
            background=engine.background,
            max_tiles=engine.model.max_tiles,
        )
        return cls(engine.compiled, engine.model.features, passes, vision="flamingo/vision")

    @classmethod
    def load(
        cls,
        path: PathLike,
        towers: Mapping[str, str | None] | None = None,
        *,
        config: InferenceConfig,
        mesh: Mesh | None = None,
    ) -> VisionEncoder:
        """Returns the encoder of a contrastive or Flamingo checkpoint, or an imported encoder.

        Each process reads the whole checkpoint.

        Args:
            path: an export, a WORKDIR, or WORKDIR/checkpoints/STEP.
            towers: paths of frozen towers that have moved, {"lm": PATH, "vision": PATH}.
            config: dtype and shapes.
            mesh: the devices; None = one.

        Raises:
            CheckpointError: there is no model at the path, or it is a language model.
        """
        opened = open_checkpoint(path, towers)
        if opened.kind == "language_model":
            raise CheckpointError(
                f"The checkpoint {opened.path} is a language model and has no features of images: "
                "give one of another stage, or an imported encoder."
            )
        encoder = from_dict(ModelConfig, opened.model_config, where="model").encoder()
        vision = "vision" if opened.kind == "vision" else f"{opened.kind}/vision"
        modules = trees.subtree(opened.params, vision)
        named = {f"vision/{name}".rstrip("/"): leaves for name, leaves in modules.items()}
        model = encoders.vision_encoder(encoder)
        params = int8.cast(model.init, named, config.policy)
        compiled = Compiled(whole_on_each_device(params, mesh), mesh, name=str(opened.path))
        passes = passes_of(
            opened.preprocessing["image_size"],
            config,
            multiple=compiled.num_shards(ALL_AXES),
            image_fit=opened.preprocessing.get("image_fit", "pad"),
            background=opened.preprocessing.get("background", "mean"),
            max_tiles=tiles_of(encoder),
        )
        return cls(compiled, model.features, passes, vision="vision")

    def __call__(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n E"]:
        """Returns features of n >= 1 visuals, in every process.

        Raises:
            PromptError: one of them cannot be read.
            NonFiniteError: the encoder gave NaN or infinity.
        """
        return self._read(visuals)

    def check_weights(self) -> None:
        """Checks the weights of the model.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        self._compiled.check_weights()

    def fingerprint(self) -> str:
        """Returns a name for the weights and for how frames are read, to store features under."""
        weights = trees.subtree(self._compiled.params, self._vision)
        passes = self.passes
        size = f"{passes.image_size}{'' if passes.image_fit == 'pad' else passes.image_fit}"
        size += "" if passes.background == "mean" else passes.background
        return f"{fingerprint(weights)}-{size}-{passes.video_frames}-{passes.video_rate:g}"

    def _encode(self, frames: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        placed = self._compiled.put((frames, frame_mask), ALL_AXES)
        features = self._compiled(self._features, *placed)
        self._compiled.finite(features[frame_mask.any(axis=1)], "features of images")
        return features
