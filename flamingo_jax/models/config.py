"""The parts of a model, and which of them a stage uses.

language_model   lm
contrastive      vision | vit, text_encoder, contrastive
flamingo         vision | vit, resampler, lm, xattn, and rows for new_tokens
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar

from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.models.vision import VisionConfig
from flamingo_jax.models.vit import ViTConfig

T = TypeVar("T")
Stage = Literal["language_model", "contrastive", "flamingo"]

PARTS: dict[str, tuple[str, ...]] = {
    "language_model": ("lm",),
    "contrastive": ("vision", "text_encoder", "contrastive"),
    "flamingo": ("vision", "resampler", "lm", "xattn"),
}


def required(part: T | None, name: str) -> T:
    """Returns a part of the model that must be there.

    Raises:
        ValueError: if it is None.
    """
    if part is None:
        raise ValueError(f"model.{name} is None; expected its description.")
    return part


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of the model.

    A stage reads those it needs, so that one file can describe all stages.

    The vision encoder is an NFNet, `vision`, or a `vit`: one of them is given, and the other None.
    `lm.vocab_size` and `text_encoder.vocab_size` may be 0, "as the tokenizer has": filled in when
    it is loaded.
    """

    vision: NFNetConfig | None = None
    vit: ViTConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    contrastive: ContrastiveConfig | None = None
    lm: LMConfig | None = None
    resampler: ResamplerConfig | None = None
    xattn: XattnConfig | None = None
    new_tokens: tuple[str, ...] = ("<EOC>",)

    def encoder(self) -> VisionConfig:
        """Returns the vision encoder, an NFNet or a ViT.

        Raises:
            ValueError: if none or both of them are given.
        """
        if self.vision is not None and self.vit is not None:
            raise ValueError(
                "model.vision (an NFNet) and model.vit are both given: set the one that is not "
                "used to None."
            )
        return required(self.vision, "vision") if self.vit is None else self.vit

    def flamingo(self) -> FlamingoConfig:
        """Returns the parts of Flamingo together.

        Raises:
            ValueError: if one of them is None.
        """
        return FlamingoConfig(
            vision=self.encoder(),
            resampler=required(self.resampler, "resampler"),
            lm=required(self.lm, "lm"),
            xattn=required(self.xattn, "xattn"),
            new_tokens=self.new_tokens,
        )

    def of_stage(self, stage: Stage) -> ModelConfig:
        """Returns the parts that a stage uses alone; only Flamingo has rows for new tokens."""
        used = {*PARTS[stage], "new_tokens", *(("vit",) if "vision" in PARTS[stage] else ())}
        unused = {field.name: None for field in dataclasses.fields(self) if field.name not in used}
        return dataclasses.replace(
            self, **unused, new_tokens=self.new_tokens if stage == "flamingo" else ()
        )

    def with_vocabulary(self, vocab_size: int) -> ModelConfig:
        """Returns the config with vocabulary sizes of 0 replaced by the tokenizer's."""
        fill = lambda part: (
            dataclasses.replace(part, vocab_size=vocab_size)
            if part and not part.vocab_size
            else part
        )
        return dataclasses.replace(self, lm=fill(self.lm), text_encoder=fill(self.text_encoder))
