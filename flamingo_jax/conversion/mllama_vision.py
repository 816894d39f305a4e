"""Converts the vision encoder of Llama 3.2 Vision, in the layout of transformers ("mllama").

    vision_model.patch_embedding, class_embedding       -> vision/...
    vision_model.gated_positional_embedding             -> vision/{positions, tile_positions, ...}
    vision_model.{pre,post}_tile_positional_embedding   -> vision/{pre,post}_tile
    vision_model.transformer.layers.N                   -> vision/layers
    vision_model.global_transformer.layers.N            -> vision/global_layers
    multi_modal_projector                               -> flamingo/media, in a whole model
    language_model, lm_head                             are skipped, if the encoder is wanted alone

Tiles have 448 pixels in the base models and 560 in the instruct models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from flamingo_jax.conversion import transforms
from flamingo_jax.conversion.clip import read_preprocessing
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.mapping import LAYER, Conversion, Rule, Rules, Skip, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, open_weights, read_config
from flamingo_jax.conversion.vit_rules import norm_rules
from flamingo_jax.data.images.tiles import arrangements
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.tiled_vit import TiledViTConfig

# config.json omits fields that have the default of its class.
_DEFAULTS = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "intermediate_size": 5120,
    "image_size": 448,
    "patch_size": 14,
    "max_num_tiles": 4,
    "norm_eps": 1e-5,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
}
_OTHERS = Skip(r"(?!(model\.)?vision_model\.).*", "no part of the vision encoder")


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a directory with config.json to an export of kind "vision".

    The files are those of a whole model, of which the encoder is taken, or of the encoder alone.

    Raises:
        ConversionError: if the config is of another model.
    """
    check_options(inputs)
    files, content = open_weights(inputs.input), read_config(inputs.input)
    kind = Fields(content).only("model_type", "mllama", "mllama_vision_model", default="missing")
    is_part = any("vision_model." in name for name in files.names())
    config = vision_config(
        content.get("vision_config", {}) if kind == "mllama" else content,
        read_preprocessing(inputs.directory),
    )
    rules = with_prefixes(tower_rules(config), source="vision_model." if is_part else "")
    return Conversion(
        kind="vision",
        model=ModelConfig(tiled_vit=config, new_tokens=()),
        rules=with_prefixes((*rules, *((_OTHERS,) if is_part else ())), target="vision/"),
        files=files,
        preprocessing=images(config),
    )


def images(config: TiledViTConfig) -> dict[str, Any]:
    """Returns how images become pixels: the config has the rest, since it says they are tiled."""
    return {"image_size": config.image_size, "background": "white"}


def vision_config(
    content: Mapping[str, Any], preprocessing: Mapping[str, Any] | None = None
) -> TiledViTConfig:
    """Returns the encoder that a `vision_config` describes; missing fields have its class's values.

    Args:
        content: of the `vision_config`.
        preprocessing: content of preprocessor_config.json. None or empty: the published mean and
            standard deviation.

    Raises:
        ConversionError: if a value is not supported.
    """
    fields, pixels = Fields(_DEFAULTS | dict(content)), Fields(preprocessing or {})
    size, tiles = fields.get("image_size"), fields.get("max_num_tiles")
    shapes = [list(pair) for pair in arrangements(tiles)]
    fields.only("model_type", "mllama_vision_model", default="mllama_vision_model")
    fields.only("num_channels", 3, default=3)
    fields.only("supported_aspect_ratios", shapes, default=shapes)
    pixels.only("max_image_tiles", tiles, default=tiles)
    pixels.only("size", {"height": size, "width": size}, default={"height": size, "width": size})
    pixels.only("resample", 2, default=2)  # PIL's number of its bilinear filter
    colours = {
        "mean": pixels.get("image_mean", default=()),
        "std": pixels.get("image_std", default=()),
    }
    config = TiledViTConfig(
        patch_size=fields.get("patch_size"),
        width=fields.get("hidden_size"),
        num_layers=fields.get("num_hidden_layers"),
        num_global_layers=fields.get("num_global_layers"),
        num_heads=fields.get("attention_heads"),
        mlp_width=fields.get("intermediate_size"),
        image_size=size,
        max_tiles=tiles,
        kept=tuple(fields.get("intermediate_layers_indices")),
        activation=cast(Any, fields.activation("hidden_act", "gelu")),
        epsilon=fields.get("norm_eps"),
        **cast(Any, {name: tuple(value) for name, value in colours.items() if value}),
    )
    width = fields.get("vision_output_dim", default=config.output_width)
    if width != config.output_width:
        raise ConversionError(
            f"config.json: vision_output_dim is {width}, and {1 + len(config.kept)} layers of "
            f"width {config.width} give {config.output_width}. This model cannot be converted."
        )
    return config


def tower_rules(config: TiledViTConfig) -> Rules:
    """Returns the rules of the encoder: names behind `vision_model.`, targets without a prefix."""
    rows = 1 + len(arrangements(config.max_tiles))
    width, tiles = config.width, config.max_tiles
    positions = "gated_positional_embedding."
    rules = [
        Rule("patch_embedding.weight", "patch_embedding/w", transforms.conv),
        Rule("class_embedding", "class_embedding"),
        Rule(f"{positions}embedding", "positions"),
        Rule(f"{positions}gate", "positions_gate", transforms.scalar),
        Rule(
            f"{positions}tile_embedding.weight",
            "tile_positions",
            lambda x: x.reshape(rows, tiles, -1, width),
        ),
        *norm_rules("layernorm_pre", "pre_norm"),
        *norm_rules("layernorm_post", "post_norm"),
        *_layers(config, f"transformer.layers.{LAYER}.", "layers/block/"),
        *_layers(config, f"global_transformer.layers.{LAYER}.", "global_layers/block/"),
    ]
    for part in ("pre_tile", "post_tile"):
        theirs = f"{part}_positional_embedding."
        table = lambda x: x.reshape(rows, tiles, width)
        rules += [
            Rule(f"{theirs}embedding.weight", f"{part}/embedding", table),
            Rule(f"{theirs}gate", f"{part}/gate", transforms.scalar),
        ]
    for theirs, ours in (("gate_attn", "attention_gate"), ("gate_ffn", "mlp_gate")):
        source, target = (
            f"global_transformer.layers.{LAYER}.{theirs}",
            f"global_layers/block/{ours}",
        )
        rules.append(Rule(source, target, transforms.scalar))
    return tuple(rules)


def projector_rules() -> Rules:
    """Returns the rules of the map to the language model's width, in a whole model.

    Names are behind `multi_modal_projector.`, targets behind `flamingo/media/`.
    """
    return (Rule("weight", "w", transforms.transpose), Rule("bias", "b"))


def _layers(config: TiledViTConfig, source: str, target: str) -> Rules:
    heads = (config.num_heads, config.width // config.num_heads)
    attention, ours = f"{source}self_attn.", f"{target}attention/"
    return (
        *norm_rules(f"{source}input_layernorm", f"{target}attention_norm"),
        *norm_rules(f"{source}post_attention_layernorm", f"{target}mlp_norm"),
        *(
            Rule(
                f"{attention}{part[0]}_proj.weight", f"{ours}{part}/w", transforms.heads_in(*heads)
            )
            for part in ("query", "key", "value")
        ),
        Rule(f"{attention}o_proj.weight", f"{ours}out/w", transforms.heads_out(*heads)),
        Rule(f"{source}mlp.fc1.weight", f"{target}mlp/up/w", transforms.transpose),
        Rule(f"{source}mlp.fc1.bias", f"{target}mlp/up/b"),
        Rule(f"{source}mlp.fc2.weight", f"{target}mlp/down/w", transforms.transpose),
        Rule(f"{source}mlp.fc2.bias", f"{target}mlp/down/b"),
    )
