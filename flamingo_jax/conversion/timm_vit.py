"""Converts CLIP's image tower in the layout of timm.

    cls_token, pos_embed, patch_embed.proj, norm_pre, blocks.N, norm   -> vision/...
    head                                          is skipped: a projection or a classifier

The architectures are vit_{base,large,huge}_patchN_clip_S and their `quickgelu` forms. timm's
config.json names the architecture, and the mean and standard deviation of the pixels. The other
sizes follow from the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from flamingo_jax.conversion.clip import features_of
from flamingo_jax.conversion.mapping import Conversion, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, Weights, open_weights, read_config
from flamingo_jax.conversion.vit_rules import Names, vision_rules
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.vit import Features, ViTConfig

NAMES = Names(
    patch="patch_embed.proj",
    class_token="cls_token",
    positions="pos_embed",
    pre_norm="norm_pre",
    block="blocks.{layer}.",
    attention_norm="norm1",
    qkv=(("attn.qkv.weight", "attn.qkv.bias"),),
    out="attn.proj",
    mlp_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    final_norm="norm",
)
_HEADS = {"base": 12, "large": 16, "huge": 16}
_HEAD = Skip(r"(head|fc_norm)\..*", "the projection or the classifier")


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory with timm's config.json to an export of kind "vision".

    The option `features` is that of `clip.conversion`.

    Raises:
        ConversionError: if the architecture is another one.
    """
    check_options(inputs, "features")
    files = open_weights(inputs.input)
    config = vision_config(read_config(inputs.input), files, features=features_of(inputs))
    return Conversion(
        kind="vision",
        model=ModelConfig(vit=config, new_tokens=()),
        rules=with_prefixes((*vision_rules(config, NAMES), _HEAD), target="vision/"),
        files=files,
        preprocessing={
            "image_size": config.image_size,
            "image_fit": "crop",
            "background": "none",
        },
    )


def vision_config(config: Mapping[str, Any], files: Weights, *, features: Features) -> ViTConfig:
    """Returns the ViT that a config.json and the shapes of the weights describe.

    Args:
        config: content of config.json.
        files: the weights.
        features: output of the tower.

    Raises:
        ConversionError: if the architecture is no CLIP, or the weights do not belong to it.
    """
    architecture, names = config.get("architecture", ""), files.names()
    found = re.fullmatch(r"vit_(base|large|huge)_patch\d+_clip_(quickgelu_)?\d+", architecture)
    if not found:
        raise ConversionError(
            f"config.json has architecture {architecture!r}; expected "
            "vit_{base,large,huge}_patchN_clip_S. Check --source."
        )
    needed = ("patch_embed.proj.weight", "pos_embed", "norm_pre.weight")
    if missing := [name for name in needed if name not in names]:
        raise ConversionError(
            f"The weights of {architecture} lack {', '.join(missing)}: take "
            "those that belong to it."
        )
    width, _, patch_size, _ = names["patch_embed.proj.weight"].shape
    pixels = config.get("pretrained_cfg", {})
    return ViTConfig(
        patch_size=patch_size,
        width=width,
        num_layers=len({name.split(".")[1] for name in names if name.startswith("blocks.")}),
        num_heads=_HEADS[found[1]],
        mlp_width=names["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=round((names["pos_embed"].shape[1] - 1) ** 0.5) * patch_size,
        activation="quick_gelu" if found[2] else "gelu_exact",
        features=features,
        final_norm=features == "class",
        interpolation="antialiased",
        **cast(Any, {name: tuple(pixels[name]) for name in ("mean", "std") if pixels.get(name)}),
    )
