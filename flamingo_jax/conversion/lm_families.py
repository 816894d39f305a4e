"""The families of open language models: their options, and the names of their weights.

    family    norm   positions        feed-forward  biases      other properties
    llama     RMS    rotary           SwiGLU        optional    grouped heads, scaled rotary
                                                                positions, tied or not
    mistral   RMS    rotary           SwiGLU        no          grouped heads, sliding window
    qwen2     RMS    rotary           SwiGLU        q, k, v     grouped heads, tied or not
    qwen3     RMS    rotary           SwiGLU        optional    the same, norms on each head's q, k
    olmo2     RMS    rotary           SwiGLU        no          norms after the parts, on q and k
    gemma2    RMS    rotary           GeGLU         no          norms before and after the parts,
                                                                every 2nd layer has a window, capped
                                                                scores and logits
    gemma3    RMS    rotary           GeGLU         no          the same without caps; 5 of 6 layers
                                                                have a window and another rotary
                                                                base; norms on each head's q, k
    gpt_neox  Layer  rotary, in part  GeLU          all         parallel residual; q, k, v fused
                                                                head by head
    mpt       Layer  ALiBi            GeLU          no          q, k, v fused; norms on q and k (1B)
    opt       Layer  learned          ReLU          all         two unused rows before the positions
    gpt2      Layer  learned          GeLU (tanh)   all         weights are [in, out]; q, k, v fused

Each family converts its config.json to the options of our block, and refuses values that the block
does not support. The mapping refuses weights that are not in a family's table. LLaMA and those that
grew out of it, to Gemma 3, are in `lm_llama`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flamingo_jax.conversion import lm_llama, lm_rotary, lm_rules, transforms
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.lm_rules import BLOCK
from flamingo_jax.conversion.mapping import LAYER, Rule, Rules, Skip, with_prefixes
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.models.lm_config import LMConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        config: (fields of config.json, rows of the embedding) -> options of the model.
        rules: (these options, names in the files) -> the table; targets begin with "lm/".
        embedding: end of the embedding's name. What is in front of it ("model.", "transformer.", or
            nothing) is the prefix of all names.
        fixed: fields of config.json with the only supported value, which is also their default.
        heads: names of the head's weights, in the order of preference.
    """

    config: Callable[[Fields, int], LMConfig]
    rules: Callable[[LMConfig, Sequence[str]], Rules]
    embedding: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    heads: Sequence[str] = ("lm_head.weight", "language_model.lm_head.weight")


def describe(content: Mapping[str, Any], shapes: Mapping[str, Any]) -> tuple[LMConfig, Rules]:
    """Returns the model that a config.json describes, and the rules for its files.

    Args:
        content: content of config.json.
        shapes: name -> shape and dtype of the files' weights.

    Raises:
        ConversionError: if the family is unknown, a value is not supported, or the config does not
            describe a valid model.
    """
    content, others = _language_model_of(content)
    fields = Fields(content)
    family = FAMILIES[fields.only("model_type", *FAMILIES, default="missing")]
    for name, value in {"quantization_config": None, **family.fixed}.items():
        fields.only(name, value, default=value)
    ends = [name for name in shapes if f".{name}".endswith(f".{family.embedding}")]
    if not ends:
        raise ConversionError(
            f"The files hold no {family.embedding}, the embedding of model_type "
            f"{fields.get('model_type')!r}. Check that config.json is theirs, and that no shard is "
            "missing."
        )
    embedding = min(ends, key=len)
    prefix = embedding.removesuffix(family.embedding)
    try:
        lm = family.config(fields, shapes[embedding].shape[0])
    except (TypeError, ValueError) as error:
        raise ConversionError(
            f"config.json does not describe a model that can be: {error}"
        ) from error
    body = family.rules(lm, [name.removeprefix(prefix) for name in shapes])
    return lm, (
        *_tables(lm, family, embedding, shapes),
        *with_prefixes(body, source=prefix),
        *_BUFFERS,
        *others,
    )


def _language_model_of(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], Rules]:
    """Returns (the part of a config.json that describes the LM, rules of what else is there)."""
    if content.get("model_type") != "gemma3":
        return content, ()
    text = Fields(content).get("text_config")
    if not isinstance(text, Mapping):
        raise ConversionError(f"config.json: text_config is {text!r}; expected an object.")
    why = "the images' part of Gemma 3, which is not converted"
    shared = {
        "tie_word_embeddings": content.get("tie_word_embeddings", True),
        "quantization_config": content.get("quantization_config"),
    }
    skipped = Skip(r"(model\.)?(vision_tower|multi_modal_projector)\..*", why)
    return {**shared, **text, "model_type": "gemma3_text"}, (skipped,)


_BUFFERS = (
    Skip(r"(.*\.)?rotary_emb\.inv_freq", "follows from the config"),
    Skip(r".*\.(attn|attention)\.(bias|masked_bias)", "the causal mask"),
)


def _tables(lm: LMConfig, family: Family, embedding: str, shapes: Mapping[str, Any]) -> Rules:
    pad = transforms.pad_rows(lm.vocab_multiple)
    table = Rule(embedding, "lm/embedding", pad)
    if lm.tied_head:
        return (
            table,
            *(
                Skip(re.escape(name), "tied: the embedding once more", same_as=embedding)
                for name in family.heads
            ),
        )
    head = next((name for name in family.heads if name in shapes), family.heads[0])
    return table, Rule(head, "lm/head", pad)


def _neox_config(fields: Fields, vocab_size: int) -> LMConfig:
    return LMConfig(
        vocab_size=vocab_size,
        num_layers=fields.get("num_hidden_layers"),
        width=fields.get("hidden_size"),
        num_heads=fields.get("num_attention_heads"),
        mlp_width=fields.get("intermediate_size"),
        norm="layer",
        norm_epsilon=fields.get("layer_norm_eps", default=1e-5),
        activation=fields.activation("hidden_act", "gelu"),
        attention_bias=fields.get("attention_bias", default=True),
        mlp_bias=True,
        parallel_residual=fields.get("use_parallel_residual", default=True),
        tied_head=fields.get("tie_word_embeddings", default=False),
        rotary_fraction=float(
            fields.get("rope_parameters.partial_rotary_factor", "rotary_pct", default=0.25)
        ),
        **lm_rotary.rotary(fields),
    )


def _neox_rules(lm: LMConfig, names: Sequence[str]) -> Rules:
    layer = f"layers.{LAYER}."
    return (
        *lm_rules.norm(lm, f"{layer}input_layernorm", f"{BLOCK}attention_norm"),
        *lm_rules.fused(
            lm,
            f"{layer}attention.query_key_value",
            lambda i: transforms.head_part(i, 3, lm.num_heads),
        ),
        *lm_rules.out(lm, f"{layer}attention.dense"),
        *lm_rules.norm(lm, f"{layer}post_attention_layernorm", f"{BLOCK}mlp_norm"),
        *lm_rules.feed_forward(
            lm, {"up": f"{layer}mlp.dense_h_to_4h", "down": f"{layer}mlp.dense_4h_to_h"}
        ),
        *lm_rules.norm(lm, "final_layer_norm", "lm/final_norm"),
    )


def _mpt_config(fields: Fields, vocab_size: int) -> LMConfig:
    """Reads `attn_config.x` of MPT; `attn_x` or `x` of its first form, MosaicGPT (the 1B)."""
    get = lambda name, default: fields.get(
        f"attn_config.{name}", f"attn_{name}", name, default=default
    )
    for name, value in _MPT_ATTENTION.items():
        Fields({name: get(name, value)}).only(name, value, default=value)
    has_bias = not fields.get("no_bias", default=True)
    width = fields.get("d_model")
    return LMConfig(
        vocab_size=vocab_size,
        num_layers=fields.get("n_layers"),
        width=width,
        num_heads=fields.get("n_heads"),
        mlp_width=fields.get("expansion_ratio", "mlp_ratio", default=4) * width,
        norm="layer",
        norm_epsilon=fields.get("layer_norm_epsilon", default=1e-5),
        norm_bias=has_bias,
        position="alibi",
        activation="gelu_exact",
        attention_bias=has_bias,
        mlp_bias=has_bias,
        qk_norm=get("qk_ln", False),
        tied_head=fields.get("tie_word_embeddings", default=True),
    )


# Fields of the attention with the only supported value, which is also their default.
_MPT_ATTENTION: Mapping[str, Any] = {
    "alibi": True,
    "alibi_bias_max": 8,
    "clip_qkv": None,
    "prefix_lm": False,
    "softmax_scale": None,
    "attn_type": "multihead_attention",
}


def _mpt_rules(lm: LMConfig, names: Sequence[str]) -> Rules:
    layer = f"blocks.{LAYER}."
    is_first = any(".ln_1." in name for name in names)  # MosaicGPT's names
    norms = ("ln_1", "ln_2", "ln_f") if is_first else ("norm_1", "norm_2", "norm_f")
    up, down = ("mlp.mlp_up", "mlp.mlp_down") if is_first else ("ffn.up_proj", "ffn.down_proj")
    rules = (
        *lm_rules.norm(lm, layer + norms[0], f"{BLOCK}attention_norm"),
        *lm_rules.fused(lm, f"{layer}attn.Wqkv", lambda i: transforms.chunk(i, 3)),
        *lm_rules.out(lm, f"{layer}attn.out_proj"),
        *lm_rules.norm(lm, layer + norms[1], f"{BLOCK}mlp_norm"),
        *lm_rules.feed_forward(lm, {"up": layer + up, "down": layer + down}),
        *lm_rules.norm(lm, norms[2], "lm/final_norm"),
    )
    if lm.qk_norm:
        for name in ("query", "key"):
            rules += lm_rules.norm(lm, f"{layer}attn.{name[0]}_ln", f"{BLOCK}attention/{name}_norm")
    return rules


def _opt_config(fields: Fields, vocab_size: int) -> LMConfig:
    width = fields.get("hidden_size")
    fields.only("word_embed_proj_dim", width, default=width)
    has_bias = fields.get("enable_bias", default=True)
    return LMConfig(
        vocab_size=vocab_size,
        num_layers=fields.get("num_hidden_layers"),
        width=width,
        num_heads=fields.get("num_attention_heads"),
        mlp_width=fields.get("ffn_dim"),
        norm="layer",
        position="learned",
        max_length=fields.get("max_position_embeddings"),
        activation=fields.activation("activation_function", "relu"),
        attention_bias=has_bias,
        mlp_bias=has_bias,
        tied_head=fields.get("tie_word_embeddings", default=True),
    )


def _opt_rules(lm: LMConfig, names: Sequence[str]) -> Rules:
    layer = f"layers.{LAYER}."
    return (
        # rows 0 and 1 are for padding
        Rule("embed_positions.weight", "lm/positions", transforms.rows(2, None)),
        *lm_rules.norm(lm, f"{layer}self_attn_layer_norm", f"{BLOCK}attention_norm"),
        *lm_rules.separate(lm, [f"{layer}self_attn.{part}_proj" for part in "qkv"]),
        *lm_rules.out(lm, f"{layer}self_attn.out_proj"),
        *lm_rules.norm(lm, f"{layer}final_layer_norm", f"{BLOCK}mlp_norm"),
        *lm_rules.feed_forward(lm, {"up": f"{layer}fc1", "down": f"{layer}fc2"}),
        *lm_rules.norm(lm, "final_layer_norm", "lm/final_norm"),
    )


def _gpt2_config(fields: Fields, vocab_size: int) -> LMConfig:
    return LMConfig(
        vocab_size=vocab_size,
        num_layers=fields.get("n_layer"),
        width=fields.get("n_embd"),
        num_heads=fields.get("n_head"),
        mlp_width=fields.get("n_inner", default=0),
        norm="layer",
        norm_epsilon=fields.get("layer_norm_epsilon", default=1e-5),
        position="learned",
        max_length=fields.get("n_positions"),
        activation=fields.activation("activation_function", "gelu_new"),
        attention_bias=True,
        mlp_bias=True,
        tied_head=fields.get("tie_word_embeddings", default=True),
    )


def _gpt2_rules(lm: LMConfig, names: Sequence[str]) -> Rules:
    layer = f"h.{LAYER}."
    return (
        Rule("wpe.weight", "lm/positions"),
        *lm_rules.norm(lm, f"{layer}ln_1", f"{BLOCK}attention_norm"),
        *lm_rules.fused(
            lm, f"{layer}attn.c_attn", lambda i: transforms.chunk(i, 3), transforms.transpose
        ),
        *lm_rules.out(lm, f"{layer}attn.c_proj", transforms.transpose),
        *lm_rules.norm(lm, f"{layer}ln_2", f"{BLOCK}mlp_norm"),
        *lm_rules.feed_forward(
            lm, {"up": f"{layer}mlp.c_fc", "down": f"{layer}mlp.c_proj"}, transforms.identity
        ),
        *lm_rules.norm(lm, "ln_f", "lm/final_norm"),
    )


_SILU = {"hidden_act": "silu"}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
_MPT_NORM = {"norm_type": "low_precision_layernorm", "logit_scale": None}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(lm_llama.llama, lm_llama.rules, "embed_tokens.weight", _SILU),
    "mistral": Family(lm_llama.mistral, lm_llama.rules, "embed_tokens.weight", _SILU),
    "qwen2": Family(
        lm_llama.qwen2,
        lm_llama.rules,
        "embed_tokens.weight",
        {**_SILU, "use_sliding_window": False},
    ),
    "qwen3": Family(
        lm_llama.qwen3,
        lm_llama.rules,
        "embed_tokens.weight",
        {**_SILU, "use_sliding_window": False},
    ),
    "olmo2": Family(lm_llama.olmo2, lm_llama.rules, "embed_tokens.weight", _SILU),
    "gemma2": Family(lm_llama.gemma2, lm_llama.rules, "embed_tokens.weight", _GEMMA),
    "gemma3_text": Family(lm_llama.gemma3, lm_llama.rules, "embed_tokens.weight", _GEMMA),
    "gpt_neox": Family(
        _neox_config, _neox_rules, "embed_in.weight", heads=("lm_head.weight", "embed_out.weight")
    ),
    "mpt": Family(_mpt_config, _mpt_rules, "wte.weight", _MPT_NORM),
    "mosaic_gpt": Family(_mpt_config, _mpt_rules, "wte.weight", _MPT_NORM),
    "opt": Family(
        _opt_config,
        _opt_rules,
        "embed_tokens.weight",
        {
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "layer_norm_elementwise_affine": True,
        },
    ),
    "gpt2": Family(
        _gpt2_config,
        _gpt2_rules,
        "wte.weight",
        {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
}
