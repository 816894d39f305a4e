"""Converts both towers of CLIP and their projections to an export of kind "contrastive".

    image tower -> class token, last norm --projection--+
    text tower  -> last token, last norm  --projection--+--> cosines, times exp(logit_scale)

The tokenizer is copied too (tokenizer.json and the files next to it). CLIP pads texts with its
<EOS>. Here the segment marks padding, and the causal encoder does not attend to it from the last
real token, so the embeddings are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flamingo_jax.conversion import published_tokenizer
from flamingo_jax.conversion.mapping import Conversion, Rule, Rules
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError, Weights
from flamingo_jax.conversion.transforms import pad_rows
from flamingo_jax.conversion.vit_rules import Names, norm_rules, projection_rules
from flamingo_jax.core.paths import Path
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.models.vit import ViTConfig
from flamingo_jax.tokenizers.base import JSON_NAME
from flamingo_jax.tokenizers.markers import Markers

Towers = Literal["vision", "both"]


def towers_of(inputs: Inputs) -> Towers:
    """Returns the option `towers`: "vision" (the default, the image tower alone) or "both".

    Raises:
        ConversionError: if the value is unknown, or `features` is set for both towers: texts are
            compared with the class token.
    """
    towers = inputs.options.get("towers", "vision")
    if towers not in ("vision", "both"):
        raise ConversionError(f"towers is {towers!r}; expected vision or both.")
    if towers == "both" and "features" in inputs.options:
        raise ConversionError(
            "features is an option of the image tower alone: leave it out, or take towers=vision."
        )
    return "both" if towers == "both" else "vision"


def text_config(*, width: int, mlp_width: int, **fields: Any) -> TextEncoderConfig:
    """Returns CLIP's text transformer.

    Args:
        width: W.
        mlp_width: width of the feed-forward layers.
        **fields: vocab_size, num_layers, num_heads, max_length, activation, epsilon.

    Raises:
        ConversionError: if the width does not divide `mlp_width`, or the number of heads does not
            divide the width.
    """
    if mlp_width % width:
        raise ConversionError(
            f"The text tower's feed-forward layers have {mlp_width} channels; expected a multiple "
            f"of its width {width}."
        )
    try:
        return TextEncoderConfig(
            width=width, mlp_ratio=mlp_width // width, norm="before", causal=True, **fields
        )
    except ValueError as error:
        raise ConversionError(f"{error} Check the config of the files.") from error


def text_rules(
    config: TextEncoderConfig, names: Names, *, embedding: str, positions: str, final_norm: str
) -> Rules:
    """Returns the rules of the text tower; `mapping.with_prefixes` adds the prefixes.

    Args:
        config: the text tower.
        names: names of the parts of a block in the files; the same as in the image tower.
        embedding: name of the token table.
        positions: name of the position table.
        final_norm: name of the last norm.
    """
    heads = (config.num_heads, config.width // config.num_heads)
    block = names.block
    return (
        Rule(embedding, "embedding", pad_rows(config.vocab_multiple)),
        Rule(positions, "positions"),
        *norm_rules(f"{block}{names.attention_norm}", "layers/attention_norm"),
        *norm_rules(f"{block}{names.mlp_norm}", "layers/ffw_norm"),
        *norm_rules(final_norm, "final_norm"),
        *projection_rules(
            names, block, heads, attention="layers/", out="output", mlp="layers/ffw/"
        ),
    )


def both(
    vit: ViTConfig,
    text: TextEncoderConfig,
    *,
    joint_dim: int,
    rules: Rules,
    files: Weights,
    directory: Path,
    preprocessing: Mapping[str, Any],
) -> Conversion:
    """Returns the conversion of both towers.

    Args:
        vit: the image tower; its features are the class token after the last norm.
        text: the text tower.
        joint_dim: J.
        rules: all rules, with full targets.
        files: the weights.
        directory: contains the tokenizer.
        preprocessing: as in an export.

    Raises:
        ConversionError: if there is no tokenizer.json, or it cannot be used.
    """
    if not (directory / JSON_NAME).exists():
        raise ConversionError(
            f"There is no {JSON_NAME} in {directory}, and the text tower needs it: put CLIP's "
            "there, with tokenizer_config.json, or take the image tower alone with towers=vision."
        )
    published = published_tokenizer.load(directory, rows=text.vocab_size).in_model(Markers(), ())
    joint = ContrastiveConfig(joint_dim=joint_dim, label_smoothing=0.0, text_pooling="last")
    return Conversion(
        kind="contrastive",
        model=ModelConfig(vit=vit, text_encoder=text, contrastive=joint, new_tokens=()),
        rules=rules,
        files=files,
        tokenizer=published,
        preprocessing=preprocessing,
    )
