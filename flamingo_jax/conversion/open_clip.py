"""Converts CLIP's image tower, or both towers, in the layout of open_clip.

    visual.*                                      -> vision/..., or contrastive/vision/...
    transformer.*, token_embedding, ln_final      -> contrastive/text/...

OpenAI's own files have this layout too. Query, key and value are one weight. The sizes and the
activation are read from open_clip_config.json next to the weights. Without this file the sizes
follow from the weights, and the option `activation` is required: OpenAI's weights were trained with
quick_gelu, LAION's with gelu_exact, and both load with either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from flamingo_jax.conversion.clip import features_of
from flamingo_jax.conversion.clip_text import both, text_config, text_rules, towers_of
from flamingo_jax.conversion.mapping import Conversion, Rule, Rules, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, Weights, open_weights
from flamingo_jax.conversion.transforms import scalar
from flamingo_jax.conversion.vit_rules import Names, vision_rules
from flamingo_jax.core import paths
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.models.vit import Activation, Features, ViTConfig

NAMES = Names(
    patch="conv1",
    class_token="class_embedding",
    positions="positional_embedding",
    pre_norm="ln_pre",
    block="transformer.resblocks.{layer}.",
    attention_norm="ln_1",
    qkv=(("attn.in_proj_weight", "attn.in_proj_bias"),),
    out="attn.out_proj",
    mlp_norm="ln_2",
    up="mlp.c_fc",
    down="mlp.c_proj",
    final_norm="ln_post",
)
_CONFIG = "open_clip_config.json"
_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_NUMBERS = Skip(
    "input_resolution|context_length|vocab_size", "sizes that OpenAI's files contain: no weights"
)
_OTHERS = Skip(r"(?!visual\.).*", "no part of the image tower")
# The supported fields of vision_cfg. Other fields change the tower, except those of _is_harmless.
_SHAPE = ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size")


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory, or a file of weights, to an export of kind "vision".

    The options `features` and `towers` are those of `clip.conversion`. The option `activation` is
    "quick_gelu" or "gelu_exact", if there is no open_clip_config.json.

    Raises:
        ConversionError: if the tower is of another kind, or the activation is unknown.
    """
    check_options(inputs, "features", "activation", "towers")
    towers, activation = towers_of(inputs), inputs.options.get("activation")
    features: Features = "class" if towers == "both" else features_of(inputs)
    directory = inputs.input if inputs.input.is_dir() else inputs.input.parent
    named = [directory / name for name in _FILES if (directory / name).exists()]
    files = open_weights(named[0] if named and inputs.input.is_dir() else inputs.input)
    if (directory / _CONFIG).exists():
        if activation is not None:
            raise ConversionError(
                f"activation was given, but {directory / _CONFIG} says it: leave it out."
            )
        described = paths.read_json(directory / _CONFIG)
        config = vision_config(
            described.get("model_cfg", {}), described.get("preprocess_cfg", {}), features=features
        )
        squashed = described.get("preprocess_cfg", {}).get("resize_mode") == "squash"
    else:
        described = {}
        config, squashed = config_of_weights(files, activation, features=features), False
    preprocessing = {
        "image_size": config.image_size,
        "image_fit": "squash" if squashed else "crop",
        "background": "none",  # its transform ignores the transparency
    }
    if towers == "both":
        text, joint_dim = _text_config(described.get("model_cfg", {}), files, config.activation)
        rules = _both_rules(config, text)
        return both(
            config,
            text,
            joint_dim=joint_dim,
            rules=rules,
            files=files,
            directory=directory,
            preprocessing=preprocessing,
        )
    return Conversion(
        kind="vision",
        model=ModelConfig(vit=config, new_tokens=()),
        rules=with_prefixes((*tower_rules(config), _OTHERS), target="vision/"),
        files=files,
        preprocessing=preprocessing,
    )


def tower_rules(config: ViTConfig, *, source: str = "visual.") -> Rules:
    """Returns the rules of the image tower; `source` is the prefix of its names in the files.

    The targets have no prefix.
    """
    projection = Skip("proj", "the projection into the joint space")
    return with_prefixes((*vision_rules(config, NAMES), projection), source=source)


def _both_rules(vit: ViTConfig, text: TextEncoderConfig) -> Rules:
    tables = {
        "embedding": "token_embedding.weight",
        "positions": "positional_embedding",
        "final_norm": "ln_final",
    }
    return (
        *with_prefixes(vision_rules(vit, NAMES), source="visual.", target="contrastive/vision/"),
        *with_prefixes(text_rules(text, NAMES, **tables), target="contrastive/text/"),
        Rule("visual.proj", "contrastive/vision_projection/w"),
        Rule("text_projection", "contrastive/text_projection/w"),
        Rule("logit_scale", "contrastive/log_temperature", scalar),
        _NUMBERS,
    )


def _text_config(
    model: Mapping[str, Any], files: Weights, activation: Activation
) -> tuple[TextEncoderConfig, int]:
    """Returns (the text tower, J), with sizes from the weights.

    The number of heads is that of the config. Without one, heads have 64 channels, as in all models
    of OpenAI.

    Raises:
        ConversionError: if there is no such tower.
    """
    names = files.names()
    needed = (
        "token_embedding.weight",
        "positional_embedding",
        "text_projection",
        "transformer.resblocks.0.mlp.c_fc.weight",
    )
    if missing := [name for name in needed if name not in names]:
        raise ConversionError(
            f"There is no text tower of CLIP in the weights: {', '.join(missing)} is missing. Take "
            "the image tower alone with towers=vision."
        )
    blocks = {
        int(found[1])
        for name in names
        if (found := re.match(r"transformer\.resblocks\.(\d+)\.", name))
    }
    vocab_size, width = names[needed[0]].shape
    config = text_config(
        width=width,
        mlp_width=names[needed[3]].shape[0],
        vocab_size=vocab_size,
        num_layers=len(blocks),
        num_heads=model.get("text_cfg", {}).get("heads", width // 64),
        max_length=names[needed[1]].shape[0],
        activation=activation,
    )
    return config, names[needed[2]].shape[1]


def vision_config(
    model: Mapping[str, Any], preprocessing: Mapping[str, Any], *, features: Features
) -> ViTConfig:
    """Returns the ViT that an open_clip_config.json describes.

    Args:
        model: its `model_cfg`.
        preprocessing: its `preprocess_cfg`, with mean and std.
        features: output of the tower.

    Raises:
        ConversionError: if the tower is no plain vision transformer.
    """
    fields = model.get("vision_cfg", {})
    other = {
        name: value
        for name, value in fields.items()
        if name not in _SHAPE and not _is_harmless(name, value)
    }
    if other or not isinstance(fields.get("layers"), int) or "patch_size" not in fields:
        raise ConversionError(
            f"{_CONFIG} describes another image tower than CLIP's vision transformer: vision_cfg "
            f"is {dict(fields)}; expected {', '.join(_SHAPE)}. Check --source."
        )
    width = fields.get("width", 768)
    colours = {
        name: tuple(preprocessing[name]) for name in ("mean", "std") if preprocessing.get(name)
    }
    return ViTConfig(
        patch_size=fields["patch_size"],
        width=width,
        num_layers=fields["layers"],
        num_heads=width // fields.get("head_width", 64),
        mlp_width=int(width * fields.get("mlp_ratio", 4.0)),
        image_size=fields.get("image_size", 224),
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu_exact",
        features=features,
        final_norm=features == "class",
        interpolation="antialiased",
        **cast(Any, colours),
    )


def config_of_weights(files: Weights, activation: str | None, *, features: Features) -> ViTConfig:
    """Returns the ViT of weights without a config; heads have 64 channels, as in OpenAI's models.

    Raises:
        ConversionError: if there is no such tower, or the activation is missing.
    """
    names = files.names()
    blocks = {
        int(found[1])
        for name in names
        if (found := re.match(r"visual\.transformer\.resblocks\.(\d+)\.", name))
    }
    if (
        not blocks
        or "visual.conv1.weight" not in names
        or "visual.positional_embedding" not in names
    ):
        raise ConversionError(
            f"There is no {_CONFIG} next to the weights, and no visual.transformer in them: "
            f"{len(names)} names, such as {', '.join(sorted(names)[:3])}. Check --source."
        )
    if activation not in get_args(Activation):
        raise ConversionError(
            f"There is no {_CONFIG} next to the weights, which says the activation; got the option "
            f"activation = {activation!r}, expected quick_gelu (OpenAI's weights) or gelu_exact "
            "(LAION's)."
        )
    width, _, patch_size, _ = names["visual.conv1.weight"].shape
    side = round((names["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return ViTConfig(
        patch_size=patch_size,
        width=width,
        num_layers=len(blocks),
        num_heads=width // 64,
        mlp_width=names["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        image_size=side * patch_size,
        activation=cast(Activation, activation),
        features=features,
        final_norm=features == "class",
        interpolation="antialiased",
    )


def _is_harmless(name: str, value: Any) -> bool:
    return name in ("patch_dropout", "output_tokens") or (name, value) == ("pool_type", "tok")
