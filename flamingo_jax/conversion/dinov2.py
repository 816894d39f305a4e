"""Converts DINOv2, with and without registers, in the layout of transformers.

    embeddings.{cls_token, register_tokens, position_embeddings, patch_embeddings}   -> vision/...
    encoder.layer.N, layernorm                                                       -> vision/...
    embeddings.mask_token, classifier                                                are skipped

The files are those of a Dinov2Model or a Dinov2WithRegistersModel (S, B, L and g), or of one of
their classifiers, whose names have "dinov2." or "dinov2_with_registers." before them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from flamingo_jax.conversion.clip import features_of, fit_of, read_preprocessing
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.mapping import Conversion, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import open_weights, read_config
from flamingo_jax.conversion.vit_rules import Names, vision_rules
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.vit import Features, ViTConfig

_ATTENTION = "attention.attention."
NAMES = Names(
    patch="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    registers="embeddings.register_tokens",
    pre_norm=None,
    block="encoder.layer.{layer}.",
    attention_norm="norm1",
    qkv=tuple(
        (f"{_ATTENTION}{part}.weight", f"{_ATTENTION}{part}.bias")
        for part in ("query", "key", "value")
    ),
    out="attention.output.dense",
    attention_scale="layer_scale1.lambda1",
    mlp_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    mlp_scale="layer_scale2.lambda1",
    final_norm="layernorm",
)
_GATED = dataclasses.replace(
    NAMES, gate_and_up="mlp.weights_in", up="mlp.weights_in", down="mlp.weights_out"
)
_KINDS = ("dinov2", "dinov2_with_registers")
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_OTHERS = (
    Skip(r"embeddings\.mask_token", "for the loss of the first training alone"),
    Skip(r"classifier\..*", "the classifier"),
)


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory with config.json to an export of kind "vision".

    The option `features` selects the output of the tower, after its last norm: "patches" (the
    default), "class_and_patches" or "class".

    Raises:
        ConversionError: if the config is of another model, or an option has an unknown value.
    """
    check_options(inputs, "features")
    features = features_of(inputs)
    files, preprocessing = open_weights(inputs.input), read_preprocessing(inputs.directory)
    content = read_config(inputs.input)
    config = vision_config(content, features, preprocessing)
    names = _GATED if config.activation == "swiglu" else NAMES
    prefix = f"{content.get('model_type')}."
    is_part = any(name.startswith(prefix) for name in files.names())
    rules = (*vision_rules(config, names), _OTHERS[0])
    rules = (*with_prefixes(rules, source=prefix if is_part else ""), _OTHERS[1])
    size = Fields(preprocessing).get("crop_size.height", default=config.image_size)
    return Conversion(
        kind="vision",
        model=ModelConfig(vit=config, new_tokens=()),
        rules=with_prefixes(rules, target="vision/"),
        files=files,
        preprocessing={
            "image_size": size,
            "image_fit": fit_of(preprocessing),
            "background": "white",
        },
    )


def vision_config(
    content: Mapping[str, Any], features: Features, preprocessing: Mapping[str, Any]
) -> ViTConfig:
    """Returns the ViT that a config.json describes; missing fields have transformers' values.

    Args:
        content: of config.json.
        features: output of the tower.
        preprocessing: content of preprocessor_config.json, or {}.

    Raises:
        ConversionError: if it is no DINOv2, or has a value that is not supported.
    """
    fields = Fields(content)
    kind = fields.only("model_type", *_KINDS, default="missing")
    has_registers, is_gated = kind != "dinov2", fields.get("use_swiglu_ffn", default=False)
    width = fields.get("hidden_size", default=768)
    hidden = int(width * fields.get("mlp_ratio", default=4))
    for name, value in {"hidden_act": "gelu", "qkv_bias": True}.items():
        fields.only(name, value, default=value)
    pixels = Fields(preprocessing)
    return ViTConfig(
        patch_size=fields.get("patch_size", default=14),
        width=width,
        num_layers=fields.get("num_hidden_layers", default=12),
        num_heads=fields.get("num_attention_heads", default=12),
        # with a gate, two thirds of it, up to the next multiple of 8
        mlp_width=-(-int(hidden * 2 / 3) // 8) * 8 if is_gated else hidden,
        image_size=fields.get("image_size", default=224),
        activation="swiglu" if is_gated else "gelu_exact",
        features=features,
        final_norm=True,
        registers=fields.get("num_register_tokens", default=4) if has_registers else 0,
        patch_bias=True,
        pre_norm=False,
        layer_scale=True,
        interpolation="antialiased" if has_registers else "bicubic",
        epsilon=fields.get("layer_norm_eps", default=1e-6),
        **cast(
            Any,
            {
                ours: tuple(pixels.get(f"image_{ours}", default=_IMAGENET[ours]))
                for ours in ("mean", "std")
            },
        ),
    )
