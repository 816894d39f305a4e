"""`ModelConfig`: the parts of a model, and the parts that each stage uses.

    language_model    lm
    contrastive       vision or vit, text_encoder, contrastive
    flamingo          vision or vit or tiled_vit, resampler, lm, xattn, and rows for new_tokens

A part that a stage does not use may be given, so that one file describes all stages.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.models.tiled_vit import TiledViTConfig
from flamingo_jax.models.vision import VisionConfig
from flamingo_jax.models.vit import ViTConfig

T = TypeVar("T")
ENCODERS = ("vision", "vit", "tiled_vit")
"""The fields of the vision encoder, of which one is given."""
Stage = Literal["language_model", "contrastive", "flamingo"]

PARTS: dict[str, tuple[str, ...]] = {
    "language_model": ("lm",),
    "contrastive": ("vision", "text_encoder", "contrastive"),
    "flamingo": ("vision", "resampler", "lm", "xattn"),
}


def required(part: T | None, name: str) -> T:
    """Returns a part of the model that is needed.

    Raises:
        ValueError: it is None.
    """
    if part is None:
        raise ValueError(f"model.{name} is None; expected its description.")
    return part


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The parts of the model.

    The vision encoder is an NFNet, `vision`, or a `vit`, or a `tiled_vit`: the others are None.
    A model of tiles needs no `resampler`. `predicts_new_tokens` is as in `FlamingoConfig`.
    `lm.vocab_size` and `text_encoder.vocab_size` may be 0; the programs then take the tokenizer's
    (`with_vocabulary`).
    """

    vision: NFNetConfig | None = None
    vit: ViTConfig | None = None
    tiled_vit: TiledViTConfig | None = None
    text_encoder: TextEncoderConfig | None = None
    contrastive: ContrastiveConfig | None = None
    lm: LMConfig | None = None
    resampler: ResamplerConfig | None = None
    xattn: XattnConfig | None = None
    new_tokens: tuple[str, ...] = ("<EOC>",)
    predicts_new_tokens: bool = True

    def encoder(self) -> VisionConfig:
        """Returns the vision encoder, an NFNet or a ViT.

        Raises:
            ValueError: none or several of them are given.
        """
        given = [name for name in ENCODERS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"model.{given[0]} and model.{given[1]} are both given: a model has one vision "
                "encoder. Set the one that is not used to None."
            )
        found: VisionConfig = required(getattr(self, given[0] if given else "vision"), "vision")
        return found

    def flamingo(self) -> FlamingoConfig:
        """Returns the parts of Flamingo together.

        Raises:
            ValueError: one of them is None.
        """
        return FlamingoConfig(
            vision=self.encoder(),
            resampler=self._resampler(),
            lm=required(self.lm, "lm"),
            xattn=required(self.xattn, "xattn"),
            new_tokens=self.new_tokens,
            predicts_new_tokens=self.predicts_new_tokens,
        )

    def _resampler(self) -> ResamplerConfig | None:
        """The resampler; only a model of tiles can be without."""
        if self.resampler is None and self.tiled_vit is not None:
            return None
        return required(self.resampler, "resampler")

    def without_adapters(self) -> ModelConfig:
        """Returns the config of the model with the adapters merged into its weights."""
        lm = None if self.lm is None else dataclasses.replace(self.lm, lora=None)
        return dataclasses.replace(self, lm=lm)

    def max_length(self, stage: Stage) -> int | None:
        """Returns the tokens of the longest row that a stage can read; None = no bound."""
        if stage == "contrastive":
            return required(self.text_encoder, "text_encoder").max_length
        lm = required(self.lm, "lm")
        return lm.max_length if lm.position == "learned" else None

    def of_stage(self, stage: Stage) -> ModelConfig:
        """Returns only the parts that a stage uses; only Flamingo has rows for new tokens."""
        used = {
            *PARTS[stage],
            "new_tokens",
            "predicts_new_tokens",
            *(ENCODERS if "vision" in PARTS[stage] else ()),
        }
        names = [field.name for field in dataclasses.fields(self)]
        unused: dict[str, Any] = {name: None for name in names if name not in used}
        new_tokens = self.new_tokens if stage == "flamingo" else ()
        return dataclasses.replace(self, **unused, new_tokens=new_tokens)

    def with_vocabulary(self, vocab_size: int) -> ModelConfig:
        """Returns the config with vocabulary sizes of 0 replaced by the tokenizer's."""
        fill = lambda part: (
            dataclasses.replace(part, vocab_size=vocab_size)
            if part and not part.vocab_size
            else part
        )
        return dataclasses.replace(self, lm=fill(self.lm), text_encoder=fill(self.text_encoder))
