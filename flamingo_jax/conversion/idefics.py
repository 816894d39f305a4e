"""Converts IDEFICS 9B and 80B, and their instruct forms (Hugging Face M4, 2023).

One directory contains CLIP-H, a resampler and LLaMA 7B or 65B:

    model.vision_model             CLIP's ViT: class token kept,          -> flamingo/vision
                                   last norm left out
    model.perceiver_resampler      no input projection, no time           -> flamingo/resampler
                                   embeddings, norms on the heads
    model.gated_cross_attn_layers  numbered 0, 1, ..., not by the         -> flamingo/xattn
                                   number of the block after them
    model.layers, model.norm       LLaMA                                  -> flamingo/lm
    embed_tokens, lm_head          32,000 rows                            -> flamingo/lm
                                   additional rows                        -> flamingo/new_tokens

Options that do not follow from the weights are read from config.json. One option is not in any
file: what attention gives to a token without an image in training. The published code gives zero
today. As first published, it gave the mean over all images (`--option=unseen=average`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from flamingo_jax.conversion import clip, lm_families, published_tokenizer, transforms
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.lm_rules import PARTS
from flamingo_jax.conversion.mapping import LAYER, Conversion, Rule, Rules, with_prefixes
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, Weights, open_weights, read_config
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.vit import ViTConfig
from flamingo_jax.tokenizers.markers import IMAGE_TAG, Markers

Unseen = Literal["zero", "average"]

AROUND = "<fake_token_around_image>"
END_OF_UTTERANCE = "<end_of_utterance>"  # ends an answer of the instruct models
NEWLINE = "<0x0A>"  # LLaMA's piece; ends an example in the prompts of the other models

# (field of config.json, the only supported value, the value of a missing field)
_ONLY = (
    ("model_type", "idefics", "missing"),
    ("use_resampler", True, False),
    ("tie_word_embeddings", False, False),
)
# config.json omits fields that have the default of its class.
_DEFAULTS = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
_VISION_DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
}


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of the directory that `--input` names.

    The option `unseen` is "zero" or "average".

    Raises:
        ConversionError: as `describe`, or if an option is unknown.
    """
    check_options(inputs, "unseen")
    unseen = inputs.options.get("unseen", "zero")
    if unseen not in get_args(Unseen):
        raise ConversionError(
            f"unseen is {unseen!r}; expected one of {', '.join(get_args(Unseen))}."
        )
    described = describe(
        read_config(inputs.input),
        open_weights(inputs.input),
        published_tokenizer.added_tokens(inputs.directory),
        unseen=cast(Unseen, unseen),
    )
    return described.with_tokenizer(inputs.directory)


def describe(
    config: Mapping[str, Any],
    files: Weights,
    added: Mapping[int, str],
    *,
    unseen: Unseen = "zero",
) -> Conversion:
    """Returns the conversion of one model.

    Args:
        config: content of config.json.
        files: the weights.
        added: id -> string of the tokens that the tokenizer adds to its vocabulary.
        unseen: what attention gives to a token without an image: zero, or (as first published) the
            mean over all images.

    Raises:
        ConversionError: if the config is of another model, or the tokenizer lacks IDEFICS's tokens.
    """
    fields = Fields(_DEFAULTS | dict(config))
    for name, value, default in _ONLY:
        fields.only(name, value, default=default)
    lm, lm_rules = lm_families.describe(
        {**_DEFAULTS, **config, "model_type": "llama"}, files.names()
    )
    theirs = {
        **_VISION_DEFAULTS,
        **fields.get("vision_config", default={}),
        "model_type": "clip_vision_model",
    }
    theirs["hidden_size"] = theirs.get("embed_dim", theirs["hidden_size"])
    vision = clip.vision_config(theirs, features="class_and_patches")
    resampler, xattn = _resampler_config(fields, vision), _xattn_config(fields, lm, unseen)
    model = ModelConfig(
        vit=vision,
        resampler=resampler,
        lm=lm,
        xattn=xattn,
        new_tokens=_new_tokens(fields, lm.vocab_size, added),
    )
    return Conversion(
        kind="flamingo",
        model=model,
        rules=(
            *with_prefixes(
                clip.tower_rules(vision, source="model.vision_model."), target="flamingo/vision/"
            ),
            *with_prefixes(
                _resampler(resampler),
                source="model.perceiver_resampler.",
                target="flamingo/resampler/",
            ),
            *with_prefixes(
                _xattn(lm, xattn),
                source="model.gated_cross_attn_layers.{layer}.",
                target="flamingo/xattn/block/",
            ),
            *with_prefixes(lm_rules, target="flamingo/"),
            Rule("model.embed_tokens.additional_embedding.weight", "flamingo/new_tokens/input"),
            Rule("lm_head.additional_fc.weight", "flamingo/new_tokens/output"),
        ),
        files=files,
        preprocessing={
            "image_size": vision.image_size,
            "image_fit": "squash",
            "background": "white",
        },
        markers=markers(model.new_tokens, lm.vocab_size),
    )


def markers(new_tokens: Sequence[str], vocab_size: int) -> Markers:
    """Returns the markers of its prompts; there is no end of chunk between text and image.

    An answer ends with `<end_of_utterance>` if the model has this token, else with a line break,
    like the few-shot examples: the model has learnt no other end than that of the document. `<EOC>`
    in a prompt becomes this marker.
    """
    end = END_OF_UTTERANCE if END_OF_UTTERANCE in new_tokens else NEWLINE
    return Markers(
        end_of_chunk=end,
        closes_chunks=False,
        image=(AROUND, IMAGE_TAG, AROUND),
        after_image="",
        vocab_size=vocab_size,
    )


def _resampler_config(fields: Fields, vision: ViTConfig) -> ResamplerConfig:
    return ResamplerConfig(
        num_layers=fields.get("perceiver_config.resampler_depth", default=6),
        width=vision.width,
        num_heads=fields.get("perceiver_config.resampler_n_heads", default=16),
        head_dim=fields.get("perceiver_config.resampler_head_dim", default=96),
        num_latents=fields.get("perceiver_config.resampler_n_latents", default=64),
        input_projection=False,
        num_time_embeddings=0,
        activation="relu",
        mlp_bias=False,
        qk_norm=fields.get("perceiver_config.qk_layer_norms_perceiver", default=False),
        final_norm=True,
    )


def _xattn_config(fields: Fields, lm: LMConfig, unseen: Unseen) -> XattnConfig:
    every = fields.get("cross_layer_interval", default=1)
    gate = fields.only("alpha_type", "float", "vector", default="float")
    if lm.num_layers % every:
        raise ConversionError(
            f"config.json: cross_layer_interval is {every}, which does not divide "
            f"num_hidden_layers {lm.num_layers}: such a model does not run."
        )
    return XattnConfig(
        every=every,
        activation="swiglu",
        mlp_width=lm.mlp_width,
        media="resampler",
        media_norm=False,
        norm="rms",
        norm_epsilon=lm.norm_epsilon,
        qk_norm=fields.get("qk_layer_norms", default=False),
        gate="vector" if gate == "vector" else "scalar",
        unseen=unseen,
    )


def _resampler(config: ResamplerConfig) -> Rules:
    attention, mlp = f"blocks.{LAYER}.0.", f"blocks.{LAYER}.1."
    heads_in = transforms.heads_in(config.num_heads, config.head_dim)
    heads_out = transforms.heads_out(config.num_heads, config.head_dim)
    norms = {"context_layer_norm": "media_norm", "latents_layer_norm": "latents_norm"}
    if config.qk_norm:
        norms |= {"q_layer_norm": "query_head_norm", "k_layer_norm": "key_head_norm"}
    return (
        Rule("latents", "latents"),
        *_layer_norm("layer_norm", "final_norm"),
        *(
            rule
            for theirs, ours in norms.items()
            for rule in _layer_norm(attention + theirs, f"layers/{ours}")
        ),
        *(
            Rule(f"{attention}{part[0]}_proj.weight", f"layers/{part}/w", heads_in)
            for part in PARTS
        ),
        Rule(f"{attention}output_proj.weight", "layers/output/w", heads_out),
        *_layer_norm(f"{mlp}ln", "layers/ffw_norm"),
        Rule(f"{mlp}fc.weight", "layers/ffw/up/w", transforms.transpose),
        Rule(f"{mlp}c_proj.weight", "layers/ffw/down/w", transforms.transpose),
    )


def _xattn(lm: LMConfig, config: XattnConfig) -> Rules:
    heads_in = transforms.heads_in(lm.num_heads, lm.head_size)
    heads_out = transforms.heads_out(lm.num_heads, lm.head_size)
    gate = transforms.flat if config.gate == "vector" else transforms.scalar
    norms = {"input_layernorm": "query_norm", "post_attention_layernorm": "mlp_norm"}
    if config.qk_norm:
        norms |= {
            "cross_attn.q_layer_norm": "query_head_norm",
            "cross_attn.k_layer_norm": "key_head_norm",
        }
    return (
        Rule("alpha_cross_attn", "attention_gate", gate),
        Rule("alpha_dense", "dense_gate", gate),
        *(Rule(f"{theirs}.weight", f"{ours}/scale") for theirs, ours in norms.items()),
        *(Rule(f"cross_attn.{part[0]}_proj.weight", f"{part}/w", heads_in) for part in PARTS),
        Rule("cross_attn.o_proj.weight", "out/w", heads_out),
        *(
            Rule(f"mlp.{part}_proj.weight", f"mlp/{part}/w", transforms.transpose)
            for part in ("gate", "up", "down")
        ),
    )


def _layer_norm(source: str, target: str) -> Rules:
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/offset")


def _new_tokens(fields: Fields, start: int, added: Mapping[int, str]) -> tuple[str, ...]:
    """Returns the tokens of the additional rows; a row without a token is <additional_ID>."""
    count = fields.get("additional_vocab_size", default=0)
    names = tuple(
        added.get(number, f"<additional_{number}>") for number in range(start, start + count)
    )
    if missing := [name for name in (AROUND, IMAGE_TAG) if name not in names]:
        raise ConversionError(
            f"The {count} tokens behind the vocabulary of {start} are {names}; {missing[0]!r} is "
            "not among them. Put the publisher's tokenizer.json, tokenizer_config.json or "
            "added_tokens.json next to config.json."
        )
    return names
