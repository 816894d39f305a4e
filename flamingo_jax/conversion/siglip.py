"""Converts SigLIP's and SigLIP 2's image tower, in the layout of transformers.

    vision_model.{embeddings, encoder.layers.N, post_layernorm, head}   -> vision/...
    text_model, logit_scale, logit_bias                                 are skipped

The files are those of a SiglipModel, as which SigLIP 2 is published too, or of a Siglip2Model (its
flexible form, "naflex"), or of their image towers alone. The flexible form is taken at one size of
square images: its images of other shapes, with fewer patches along one side, are not carried over.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from flamingo_jax.conversion import clip
from flamingo_jax.conversion.clip import BUFFERS, read_preprocessing
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.mapping import Conversion, Rules, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, open_weights, read_config
from flamingo_jax.conversion.transforms import Transform, conv
from flamingo_jax.conversion.vit_rules import (
    norm_rules,
    projection_rules,
    token_rule,
    vision_rules,
)
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.vit import ViTConfig

NAMES = dataclasses.replace(clip.NAMES, class_token=None, pre_norm=None)
_HEAD = dataclasses.replace(
    NAMES,
    qkv=(("attention.in_proj_weight", "attention.in_proj_bias"),),
    out="attention.out_proj",
)
_KINDS = ("siglip", "siglip2", "siglip_vision_model", "siglip2_vision_model")
_OTHERS = Skip(r"(?!vision_model\.).*", "no part of the image tower")
FEATURES = ("patches", "pooled")


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory with config.json to an export of kind "vision".

    The option `features` selects the output of the tower, after its last norm: "patches" (the
    default), or "pooled", the image embedding that SigLIP compares with texts.

    Raises:
        ConversionError: if the config is of another model, or an option has an unknown value.
    """
    check_options(inputs, "features")
    features = inputs.options.get("features", "patches")
    if features not in FEATURES:
        raise ConversionError(f"features is {features!r}; expected {' or '.join(FEATURES)}.")
    files, preprocessing = open_weights(inputs.input), read_preprocessing(inputs.directory)
    config = vision_config(read_config(inputs.input), features, preprocessing)
    is_part = any(name.startswith("vision_model.") for name in files.names())
    rules = with_prefixes(tower_rules(config), source="vision_model." if is_part else "")
    others = (_OTHERS,) if is_part else ()
    return Conversion(
        kind="vision",
        model=ModelConfig(vit=config, new_tokens=()),
        rules=with_prefixes((*rules, *others), target="vision/"),
        files=files,
        preprocessing={
            "image_size": config.image_size,
            "image_fit": "squash",
            "background": "white",
        },
    )


def vision_config(
    content: Mapping[str, Any], features: str, preprocessing: Mapping[str, Any]
) -> ViTConfig:
    """Returns the ViT that a config.json describes; missing fields have transformers' values.

    Args:
        content: of config.json.
        features: one of `FEATURES`.
        preprocessing: content of preprocessor_config.json, or {}.

    Raises:
        ConversionError: if it is no SigLIP, or has a value that is not supported.
    """
    kind = Fields(content).only("model_type", *_KINDS, default="missing")
    fields = Fields(content if kind.endswith("_vision_model") else content.get("vision_config", {}))
    is_flexible = kind.startswith("siglip2")
    patch_size = fields.get("patch_size", default=16)
    image_size = fields.get("image_size", default=224)
    if is_flexible:
        patches = fields.get("num_patches", default=256)
        if math.isqrt(patches) ** 2 != patches:
            raise ConversionError(
                f"config.json: num_patches is {patches}; expected a square, so that the patches "
                "fill a square image."
            )
        image_size = math.isqrt(patches) * patch_size
    needed = {"vision_use_head": True} if features == "pooled" else {}
    for name, value in needed.items():
        fields.only(name, value, default=value)
    fields.only("hidden_act", "gelu", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    pixels = Fields(preprocessing)
    half = [0.5, 0.5, 0.5]
    return ViTConfig(
        patch_size=patch_size,
        width=fields.get("hidden_size", default=768),
        num_layers=fields.get("num_hidden_layers", default=12),
        num_heads=fields.get("num_attention_heads", default=12),
        mlp_width=fields.get("intermediate_size", default=3072),
        image_size=image_size,
        activation=cast(Any, fields.activation("hidden_act", "gelu_pytorch_tanh")),
        features=cast(Any, features),
        final_norm=True,
        class_token=False,
        patch_bias=True,
        pre_norm=False,
        interpolation="linear" if is_flexible else "bicubic",
        epsilon=fields.get("layer_norm_eps", default=1e-6),
        mean=cast(Any, tuple(pixels.get("image_mean", default=half))),
        std=cast(Any, tuple(pixels.get("image_std", default=half))),
    )


def tower_rules(config: ViTConfig) -> Rules:
    """Returns the rules of the image tower; names and targets have no prefix."""
    rules = (*vision_rules(config, NAMES, patch=_patches(config.patch_size)), BUFFERS)
    if config.features != "pooled":
        return (*rules, Skip(r"head\..*", "the head: the features are taken before it"))
    heads = (config.num_heads, config.width // config.num_heads)
    return (
        *rules,
        token_rule("head.probe", "pool/query_embedding"),
        *norm_rules("head.layernorm", "pool/mlp_norm"),
        *projection_rules(
            _HEAD, "head.", heads, attention="pool/attention/", out="out", mlp="pool/mlp/"
        ),
    )


def _patches(size: int) -> Transform:
    """Returns the transform of the patches' weight, of a convolution or (SigLIP 2) a linear map."""

    def change(x: np.ndarray) -> np.ndarray:
        if x.ndim == 4:
            return conv(x)
        return x.reshape(len(x), size, size, -1).transpose(1, 2, 3, 0)

    return change
