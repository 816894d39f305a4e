"""The two encoders of the contrastive stage: visuals and texts to one space (paper, B.1.3).

    model = DualEncoder.load("runs/demo/contrastive/export")
    images = model.images([Image("cat.jpg"), Image("dog.jpg")])
    images @ model.texts(["a cat", "a dog"]).T                                  -> float32[2, 2]

    images --image encoder--> --projection--> --to length 1--> [n J]
    videos --as images--> mean of the frames' embeddings --to length 1--> [n J]
    texts  --text encoder--> --projection--> --to length 1--> [n J]

The mean over a video's frames is the paper's (Table 7: Kinetics). A text that is too long for the
encoder is cut, and keeps its <EOS>. Images and texts are spread over all devices, and an embedding
does not depend on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.notation import Float, Int
from flamingo_jax.core.paths import PathLike
from flamingo_jax.data.interleave import tokenise_text
from flamingo_jax.inference.cache_of_latents import passes_of
from flamingo_jax.inference.compiled import Compiled, fetch, whole_on_each_device
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.nearest import Rices
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.inference.visuals import Visual
from flamingo_jax.models import encoders, int8
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.sharding.mesh import AXES as ALL_AXES
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer

_TEXTS = 256  # texts that one device encodes together


class DualEncoder:
    """The two encoders of the contrastive stage.

    Attributes:
        inverse_temperature: beta, the factor of the cosines in training.
        checkpoint: path that the model was loaded from.
        step: the update at which it was saved.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: trees.Params,
        tokenizer: Tokenizer,
        *,
        preprocessing: Mapping[str, Any],
        config: InferenceConfig | None = None,
        mesh: Mesh | None = None,
        checkpoint: str = "",
        step: int = 0,
        features: PathLike | None = None,
    ) -> None:
        """Takes the parts as they are, for instance during training; `load` reads a checkpoint.

        Args:
            model: has the vision encoder, `text_encoder` and `contrastive`.
            params: the weights, "contrastive/..."; on `mesh`, if there is one.
            tokenizer: of the text encoder.
            preprocessing: how images become frames, {"image_size": pixels, ...}.
            config: `compute`, `images_per_pass`, `video_frames` and `video_rate` are used.
            mesh: the devices; None = one.
            checkpoint: recorded in results.
            step: recorded in results.
            features: directory where the images' embeddings are stored for the next run; None =
                only in memory.

        Raises:
            ValueError: a part of the model is None.
        """
        config = config or InferenceConfig()
        self.checkpoint, self.step = checkpoint, step
        self._tokenizer = tokenizer
        self._length = required(model.text_encoder, "text_encoder").max_length
        self._model = encoders.contrastive(model)
        beta = fetch(params["contrastive"]["log_temperature"])
        self.inverse_temperature = float(np.exp(np.asarray(beta, np.float32)))
        weights = int8.cast(self._model.init, params, config.policy)
        self._compiled = Compiled(weights, mesh, name=checkpoint)
        passes = passes_of(
            preprocessing["image_size"],
            config,
            multiple=self._compiled.num_shards(ALL_AXES),
            image_fit=preprocessing.get("image_fit", "pad"),
            background=preprocessing.get("background", "mean"),
        )
        embed_visuals = self._model.embed_visuals
        encoder = VisionEncoder(self._compiled, embed_visuals, passes, vision="contrastive")
        self._store = Rices(encoder, features)

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        config: InferenceConfig | None = None,
        mesh: Mesh | None = None,
        features: PathLike | None = None,
    ) -> DualEncoder:
        """Opens a checkpoint of the contrastive stage.

        Args:
            path: an export, a WORKDIR (its newest step), or WORKDIR/checkpoints/STEP; local or
                gs://.
            config: dtype and shapes.
            mesh: the devices; None = one.
            features: as above.

        Raises:
            CheckpointError: there is no model at the path, or one of another stage, or it has no
                tokenizer.
        """
        opened = open_checkpoint(path)
        if opened.kind != "contrastive":
            raise CheckpointError(
                f"The checkpoint {opened.path} is a {opened.kind} model, and has not both an image "
                "and a text encoder in one space: give one of the contrastive stage."
            )
        if opened.tokenizer is None:
            raise CheckpointError(
                f"The checkpoint {opened.path} has no tokenizer, so its text "
                "encoder cannot be used."
            )
        return cls(
            from_dict(ModelConfig, opened.model_config, where="model"),
            whole_on_each_device(opened.params, mesh),
            load_tokenizer(opened.tokenizer, opened.new_tokens),
            preprocessing=opened.preprocessing,
            config=config,
            mesh=mesh,
            checkpoint=str(opened.path),
            step=opened.step,
            features=features,
        )

    def images(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n J"]:
        """Returns embeddings of n >= 1 visuals, in every process; known ones are not encoded again.

        Raises:
            PromptError: one of them cannot be read.
            NonFiniteError: the image encoder gave NaN or infinity.
        """
        return self._store.features(visuals)

    def texts(self, strings: Sequence[str]) -> Float[np.ndarray, "n J"]:
        """Returns embeddings of n >= 1 texts, in every process; equal ones are encoded once.

        Raises:
            NonFiniteError: the text encoder gave NaN or infinity.
        """
        unique = {text: place for place, text in enumerate(dict.fromkeys(strings))}
        tokens, segment = self._tokenised(list(unique))
        shards = self._compiled.num_shards(ALL_AXES)
        # At most the number of texts, rounded up to a power of two: few shapes, few programs.
        rows = min(_TEXTS, 1 << (len(unique) - 1).bit_length()) * shards
        found = []
        for start in range(0, len(tokens), rows):
            some = [array[start : start + rows] for array in (tokens, segment)]
            spare = rows - len(some[0])
            # Padding repeats a real row, since a text without tokens has no mean.
            repeat = lambda array, n=spare: np.concatenate([array, np.repeat(array[:1], n, axis=0)])
            placed = self._compiled.put([repeat(array) for array in some], ALL_AXES)
            embeddings = self._compiled(self._model.embed_texts, *placed)
            found.append(self._compiled.finite(embeddings[: rows - spare], "features of texts"))
        return np.concatenate(found)[[unique[text] for text in strings]]

    def check_weights(self) -> None:
        """Checks the weights of both encoders.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        self._compiled.check_weights()

    def _tokenised(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "n L"], Int[np.ndarray, "n L"]]:
        """(tokens, segment) of texts, padded to the encoder's longest text."""
        tokens = np.full((len(texts), self._length), self._tokenizer.pad_id, np.int32)
        segment = np.zeros((len(texts), self._length), np.int32)
        for row, text in enumerate(texts):
            ids = tokenise_text(text, self._tokenizer)
            if len(ids) > self._length:
                ids = np.append(ids[: self._length - 1], ids[-1])
            tokens[row, : len(ids)], segment[row, : len(ids)] = ids, 1
        return tokens, segment
