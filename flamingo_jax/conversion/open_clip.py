"""Converts CLIP's image tower, or both towers, in the layout of open_clip.

    visual.*                                      -> vision/..., or contrastive/vision/...
    transformer.*, token_embedding, ln_final      -> contrastive/text/...

OpenAI's own files have this layout too. Query, key and value are one weight. The sizes and the
activation are read from open_clip_config.json next to the weights. Without this file the sizes
follow from the weights, except two that any weights load with. The option `activation` is required:
OpenAI's weights were trained with quick_gelu, LAION's with gelu_exact. The number of heads is
looked up in a table of the published models, and must be given for others (`heads`, `text_heads`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from flamingo_jax.conversion.clip import features_of
from flamingo_jax.conversion.clip_text import both, text_config, text_rules, towers_of
from flamingo_jax.conversion.files import model_files
from flamingo_jax.conversion.mapping import Conversion, Rule, Rules, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, Weights, open_weights, read_object
from flamingo_jax.conversion.transforms import scalar
from flamingo_jax.conversion.vit_rules import Names, vision_rules
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
CONFIG, FILES = model_files.OPEN_CLIP_CONFIG, model_files.OPEN_CLIP_FILES
_NUMBERS = Skip(
    "input_resolution|context_length|vocab_size", "sizes that OpenAI's files contain: no weights"
)
_OTHERS = Skip(r"(?!visual\.).*", "no part of the image tower")
# (width, layers, width of the feed-forward) of the published models -> heads. Those of H, g, bigG
# and e have 80, 88, 104 and 112 channels, and not 64.
_HEADS = {
    "visual.": {
        (384, 12, 1536): 6,  # S
        (512, 12, 2048): 8,  # M
        (768, 12, 3072): 12,  # B
        (896, 12, 3584): 14,  # B plus
        (1024, 24, 4096): 16,  # L
        (1280, 32, 5120): 16,  # H
        (1408, 40, 6144): 16,  # g
        (1664, 48, 8192): 16,  # bigG
        (1792, 56, 15360): 16,  # e
    },
    "": {
        (256, 10, 1024): 4,
        (384, 12, 1536): 6,
        (512, 12, 2048): 8,
        (640, 12, 2560): 10,
        (768, 12, 3072): 12,
        (1024, 24, 4096): 16,
        (1280, 32, 5120): 20,
        (1280, 36, 5120): 20,
    },
}
# The supported fields of vision_cfg. Other fields change the tower, except those of _is_harmless.
_SHAPE = ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size")


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory, or a file of weights, to an export of kind "vision".

    The options `features` and `towers` are those of `clip.conversion`. The option `activation` is
    "quick_gelu" or "gelu_exact", if there is no open_clip_config.json; then `heads` and
    `text_heads` are the heads of a model that is not a published one.

    Raises:
        ConversionError: if the tower is of another kind, or the activation or the number of heads
            is unknown.
    """
    check_options(inputs, "features", "activation", "towers", "heads", "text_heads")
    towers, activation = towers_of(inputs), inputs.options.get("activation")
    features: Features = "class" if towers == "both" else features_of(inputs)
    directory, heads = inputs.directory, _given_heads(inputs)
    files = open_weights(inputs.input, first=FILES)
    if (directory / CONFIG).exists():
        if given := [*(["activation"] if activation else []), *heads]:
            raise ConversionError(
                f"{given[0]} was given, but {directory / CONFIG} says it: leave it out."
            )
        described = read_object(directory / CONFIG)
        config = vision_config(
            described.get("model_cfg", {}), described.get("preprocess_cfg", {}), features=features
        )
        squashed = described.get("preprocess_cfg", {}).get("resize_mode") == "squash"
    else:
        described = {}
        config = config_of_weights(files, activation, features=features, heads=heads.get("heads"))
        squashed = False
    preprocessing = {
        "image_size": config.image_size,
        "image_fit": "squash" if squashed else "crop",
        "background": "none",  # its transform ignores the transparency
    }
    if towers == "both":
        text, joint_dim = _text_config(
            files, config.activation, _text_heads(described, files, heads.get("text_heads"))
        )
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
    files: Weights, activation: Activation, num_heads: int
) -> tuple[TextEncoderConfig, int]:
    """Returns (the text tower, J), with sizes from the weights.

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
    vocab_size, width = names[needed[0]].shape
    config = text_config(
        width=width,
        mlp_width=names[needed[3]].shape[0],
        vocab_size=vocab_size,
        num_layers=_num_blocks(names, ""),
        num_heads=num_heads,
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
            f"{CONFIG} describes another image tower than CLIP's vision transformer: vision_cfg "
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


def config_of_weights(
    files: Weights, activation: str | None, *, features: Features, heads: int | None = None
) -> ViTConfig:
    """Returns the ViT of weights without a config.

    Args:
        files: the weights.
        activation: quick_gelu or gelu_exact.
        features: output of the tower.
        heads: number of heads; None = that of the published model with this width and depth.

    Raises:
        ConversionError: if there is no such tower, or the activation or the number of heads is
            missing.
    """
    names = files.names()
    if (
        not _num_blocks(names, "visual.")
        or "visual.conv1.weight" not in names
        or "visual.positional_embedding" not in names
    ):
        raise ConversionError(
            f"There is no {CONFIG} next to the weights, and no visual.transformer in them: "
            f"{len(names)} names, such as {', '.join(sorted(names)[:3])}. Check --source."
        )
    if activation not in get_args(Activation):
        raise ConversionError(
            f"There is no {CONFIG} next to the weights, which says the activation; got the option "
            f"activation = {activation!r}, expected quick_gelu (OpenAI's weights) or gelu_exact "
            "(LAION's)."
        )
    width, _, patch_size, _ = names["visual.conv1.weight"].shape
    side = round((names["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return ViTConfig(
        patch_size=patch_size,
        width=width,
        num_layers=_num_blocks(names, "visual."),
        num_heads=heads or _heads_of_published(names, "visual.", "heads"),
        mlp_width=names["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        image_size=side * patch_size,
        activation=cast(Activation, activation),
        features=features,
        final_norm=features == "class",
        interpolation="antialiased",
    )


def _num_blocks(names: Mapping[str, Any], prefix: str) -> int:
    pattern = re.compile(rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def _given_heads(inputs: Inputs) -> dict[str, int]:
    """Returns the options `heads` and `text_heads` that are given."""
    given = {
        name: inputs.options[name] for name in ("heads", "text_heads") if name in inputs.options
    }
    if wrong := [name for name, value in given.items() if not re.fullmatch(r"[1-9]\d{0,5}", value)]:
        raise ConversionError(
            f"{wrong[0]} is {given[wrong[0]]!r}; expected a number of attention heads, such as 16."
        )
    return {name: int(value) for name, value in given.items()}


def _text_heads(described: Mapping[str, Any], files: Weights, heads: int | None) -> int:
    """Returns the heads of the text tower; open_clip's config omits them if they are 8."""
    if described:
        return int((described.get("model_cfg", {}).get("text_cfg") or {}).get("heads", 8))
    return heads or _heads_of_published(files.names(), "", "text_heads")


def _heads_of_published(names: Mapping[str, Any], prefix: str, option: str) -> int:
    """Returns the heads of the published model with the sizes of these weights."""
    up = f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"
    if up not in names:
        raise ConversionError(f"The weights lack {up}: take all weights of one model.")
    mlp_width, width = names[up].shape
    sizes = (width, _num_blocks(names, prefix), mlp_width)
    if sizes not in _HEADS[prefix]:
        raise ConversionError(
            f"There is no {CONFIG} next to the weights, which says the number of heads. No "
            f"published model has width {sizes[0]}, {sizes[1]} blocks and feed-forward {sizes[2]}: "
            f"put the config there, or give --option={option}=NUMBER. Any number that divides the "
            "width loads, and only one gives the right features."
        )
    return _HEADS[prefix][sizes]


def _is_harmless(name: str, value: Any) -> bool:
    return name in ("patch_dropout", "output_tokens") or (name, value) == ("pool_type", "tok")
