"""Converts CLIP in the layout of transformers: the image tower, or both towers.

    vision_model.{embeddings, pre_layrnorm, encoder.layers.N, post_layernorm}  -> vision/...
    visual_projection, text_model, text_projection, logit_scale                -> contrastive/...
                                                        with towers=both; else they are skipped

The files are those of a CLIPModel or a CLIPVisionModel, with the weights of OpenAI or of LAION. The
activation is read from config.json, because it does not follow from the weights: quick_gelu for
OpenAI's weights, gelu (the exact one) for LAION's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flamingo_jax.conversion.clip_text import both, text_config, text_rules, towers_of
from flamingo_jax.conversion.mapping import Conversion, Rule, Rules, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import (
    ConversionError,
    open_weights,
    read_config,
    read_object,
)
from flamingo_jax.conversion.transforms import scalar, transpose
from flamingo_jax.conversion.vit_rules import Names, vision_rules
from flamingo_jax.core.paths import Path
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.vit import Features, ViTConfig

NAMES = Names(
    patch="embeddings.patch_embedding",
    class_token="embeddings.class_embedding",
    positions="embeddings.position_embedding.weight",
    pre_norm="pre_layrnorm",  # the publisher's spelling
    block="encoder.layers.{layer}.",
    attention_norm="layer_norm1",
    qkv=tuple((f"self_attn.{part}_proj.weight", f"self_attn.{part}_proj.bias") for part in "qkv"),
    out="self_attn.out_proj",
    mlp_norm="layer_norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    final_norm="post_layernorm",
)
BUFFERS = Skip(r"embeddings\.position_ids", "0, 1, 2, ...: no weight")
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu_exact"}
_FEATURES = ("patches", "class_and_patches", "class")  # of a tower with a class token
_OTHERS = Skip(r"(?!vision_model\.).*", "no part of the image tower")


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory with config.json to an export of kind "vision".

    The option `features` selects the output of the tower: "patches" (the default, as in
    OpenFlamingo) or "class_and_patches" (as in IDEFICS), before the last norm; or "class", after
    it (CLIP's image embedding before its projection). With the option towers=both the whole
    CLIPModel becomes an export of kind "contrastive".

    Raises:
        ConversionError: if the config is of another model, or an option has an unknown value.
    """
    check_options(inputs, "features", "towers")
    if towers_of(inputs) == "both":
        return _both(inputs)
    features = features_of(inputs)
    files, preprocessing = open_weights(inputs.input), read_preprocessing(inputs.directory)
    config = vision_config(
        read_config(inputs.input), features=features, preprocessing=preprocessing
    )
    is_part = any(name.startswith("vision_model.") for name in files.names())
    rules = (
        *tower_rules(config, source="vision_model." if is_part else ""),
        *((_OTHERS,) if is_part else ()),
    )
    return Conversion(
        kind="vision",
        model=ModelConfig(vit=config, new_tokens=()),
        rules=with_prefixes(rules, target="vision/"),
        files=files,
        preprocessing=_images(config.image_size, preprocessing),
    )


def _both(inputs: Inputs) -> Conversion:
    directory = inputs.directory
    described, preprocessing = read_config(directory), read_preprocessing(directory)
    vit = vision_config(described, features="class", preprocessing=preprocessing)
    if described.get("model_type", "clip") != "clip":
        raise ConversionError(f"{directory} holds CLIP's image tower alone: take towers=vision.")
    fields = described.get("text_config", {})
    text = text_config(
        width=fields.get("hidden_size", 512),
        mlp_width=fields.get("intermediate_size", 2048),
        vocab_size=fields.get("vocab_size", 49408),
        num_layers=fields.get("num_hidden_layers", 12),
        num_heads=fields.get("num_attention_heads", 8),
        max_length=fields.get("max_position_embeddings", 77),
        activation=_activation(fields),
        epsilon=fields.get("layer_norm_eps", 1e-5),
    )
    rules = text_rules(
        text,
        NAMES,
        embedding="embeddings.token_embedding.weight",
        positions="embeddings.position_embedding.weight",
        final_norm="final_layer_norm",
    )
    return both(
        vit,
        text,
        joint_dim=described.get("projection_dim", 512),
        rules=(
            *with_prefixes(tower_rules(vit, source="vision_model."), target="contrastive/vision/"),
            *with_prefixes((*rules, BUFFERS), source="text_model.", target="contrastive/text/"),
            Rule("visual_projection.weight", "contrastive/vision_projection/w", transpose),
            Rule("text_projection.weight", "contrastive/text_projection/w", transpose),
            Rule("logit_scale", "contrastive/log_temperature", scalar),
        ),
        files=open_weights(inputs.input),
        directory=directory,
        preprocessing=_images(vit.image_size, preprocessing),
    )


def tower_rules(config: ViTConfig, *, source: str = "") -> Rules:
    """Returns the rules of the image tower; `source` is the prefix of its names in the files.

    The targets have no prefix.
    """
    return with_prefixes((*vision_rules(config, NAMES), BUFFERS), source=source)


def vision_config(
    config: Mapping[str, Any], *, features: Features, preprocessing: Mapping[str, Any] | None = None
) -> ViTConfig:
    """Returns the ViT that a config.json describes.

    Args:
        config: its content, of a CLIPModel (with a field `vision_config`) or a CLIPVisionModel.
            Missing fields have CLIP's values.
        features: output of the tower. Only "class" is taken after the last norm.
        preprocessing: content of preprocessor_config.json. None or empty: CLIP's mean and standard
            deviation.

    Raises:
        ConversionError: if the model is no CLIP, or the activation is unknown.
    """
    kind = config.get("model_type", "clip")
    if kind not in ("clip", "clip_vision_model"):
        raise ConversionError(
            f"config.json has model_type {kind!r}; expected 'clip' or 'clip_vision_model'. Check "
            "--source."
        )
    fields = config.get("vision_config", {}) if kind == "clip" else config
    preprocessing = preprocessing or {}
    colours = {"mean": preprocessing.get("image_mean"), "std": preprocessing.get("image_std")}
    return ViTConfig(
        patch_size=fields.get("patch_size", 32),
        width=fields.get("hidden_size", 768),
        num_layers=fields.get("num_hidden_layers", 12),
        num_heads=fields.get("num_attention_heads", 12),
        mlp_width=fields.get("intermediate_size", 3072),
        image_size=fields.get("image_size", 224),
        activation=_activation(fields),
        features=features,
        final_norm=features == "class",
        epsilon=fields.get("layer_norm_eps", 1e-5),
        **cast(Any, {name: tuple(value) for name, value in colours.items() if value}),
    )


def _activation(fields: Mapping[str, Any]) -> Any:
    activation = fields.get("hidden_act", "quick_gelu")
    if activation not in _ACTIVATIONS:
        raise ConversionError(
            f"config.json has hidden_act {activation!r}; expected one of "
            f"{', '.join(_ACTIVATIONS)}: another would give other features."
        )
    return _ACTIVATIONS[activation]


def features_of(inputs: Inputs) -> Features:
    """Returns the option `features`.

    Raises:
        ConversionError: if the value is unknown.
    """
    features = inputs.options.get("features", "patches")
    if features not in _FEATURES:
        raise ConversionError(f"features is {features!r}; expected one of {', '.join(_FEATURES)}.")
    return cast(Features, features)


def read_preprocessing(directory: Path) -> dict[str, Any]:
    """Returns the content of preprocessor_config.json, or {} if there is no such file."""
    file = directory / "preprocessor_config.json"
    return read_object(file) if file.exists() else {}


def _images(size: int, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how images become pixels; transformers puts white behind transparent ones."""
    return {"image_size": size, "image_fit": fit_of(preprocessing), "background": "white"}


def fit_of(preprocessing: Mapping[str, Any]) -> str:
    """Returns how images become squares; by default CLIP crops the centre."""
    return "crop" if preprocessing.get("do_center_crop", True) else "squash"
