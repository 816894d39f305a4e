"""LLaMA, and the families of language models that grew out of it: options, and names of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flamingo_jax.conversion import lm_rotary, lm_rules
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.lm_rules import BLOCK
from flamingo_jax.conversion.mapping import LAYER, Rules
from flamingo_jax.models.lm_config import LMConfig

# Around attention, around the feed-forward layer, by `LMConfig.norm_place`: a name of LLaMA's has
# another place in OLMo 2 and in Gemma.
_NORMS = {
    "before": {"input": "attention_norm", "post_attention": "mlp_norm"},
    "after": {"post_attention": "attention_out_norm", "post_feedforward": "mlp_out_norm"},
    "both": {
        "input": "attention_norm",
        "post_attention": "attention_out_norm",
        "pre_feedforward": "mlp_norm",
        "post_feedforward": "mlp_out_norm",
    },
}


def llama(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of LLaMA 1 to 3."""
    for name in ("partial_rotary_factor", "rope_parameters.partial_rotary_factor"):
        fields.only(name, 1.0, default=1.0)
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    head_dim = fields.get("head_dim", default=0)
    kv_heads = fields.get("num_key_value_heads", default=heads)
    return LMConfig(
        vocab_size=vocab_size,
        num_layers=fields.get("num_hidden_layers"),
        width=width,
        num_heads=heads,
        # 0 if the size follows from other fields
        head_dim=0 if head_dim * heads == width else head_dim,
        num_kv_heads=0 if kv_heads == heads else kv_heads,
        mlp_width=fields.get("intermediate_size"),
        norm="rms",
        norm_epsilon=fields.get("rms_norm_eps", default=1e-6),
        activation="swiglu",
        attention_bias=fields.get("attention_bias", default=False),
        mlp_bias=fields.get("mlp_bias", default=False),
        tied_head=fields.get("tie_word_embeddings", default=False),
        **lm_rotary.rotary(fields),
    )


def mistral(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of Mistral: a window in all layers."""
    window = fields.get("sliding_window", default=0)
    return dataclasses.replace(llama(fields, vocab_size), sliding_window=window)


def qwen2(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of Qwen2: biases of queries, keys and values."""
    return dataclasses.replace(llama(fields, vocab_size), qkv_bias=True)


def qwen3(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of Qwen3: norms on each head's queries and keys."""
    known = fields.with_defaults({"head_dim": 128})
    return dataclasses.replace(llama(known, vocab_size), head_norm=True)


def olmo2(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of OLMo 2: norms after the parts, and on queries and keys."""
    known = fields.with_defaults({"rms_norm_eps": 1e-5})
    return dataclasses.replace(llama(known, vocab_size), norm_place="after", qk_norm=True)


# What transformers takes for a field that is missing: the files of Gemma 3 leave out most.
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def gemma2(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of Gemma 2: every 2nd layer has a window."""
    known = fields.with_defaults({**_GEMMA, **_CAPS})
    options = _gemma(known) | lm_rotary.windows(known, every=2)
    return dataclasses.replace(llama(known, vocab_size), **options)


def gemma3(fields: Fields, vocab_size: int) -> LMConfig:
    """Returns the options of Gemma 3's text model: 5 of 6 layers have a window."""
    known = fields.with_defaults(_GEMMA)
    positions = lm_rotary.two_bases(known, base=1e6, local=1e4)
    windows = lm_rotary.windows(known, every=6)
    if not windows["sliding_window"]:
        positions["local_rotary_base"] = 0.0
    without = known.with_values({"rope_parameters": None, "rope_scaling": None})
    options = {**_gemma(known), **windows, **positions, "head_norm": True}
    return dataclasses.replace(llama(without, vocab_size), **options)


def _gemma(fields: Fields) -> dict[str, Any]:
    """Returns the options that Gemma 2 and 3 have, and LLaMA has not."""
    size = fields.get("query_pre_attn_scalar")
    return {
        "norm_place": "both",
        "norm_from_one": True,
        "activation": "geglu",
        "score_size": 0 if size == fields.get("head_dim") else size,
        "score_cap": fields.get("attn_logit_softcapping", default=0.0),
        "logit_cap": fields.get("final_logit_softcapping", default=0.0),
        "scaled_embedding": True,
    }


def rules(lm: LMConfig, names: Sequence[str]) -> Rules:
    """Returns the rules of the blocks and of the last norm; `Family.rules` says more."""
    layer = f"layers.{LAYER}."
    norms = {
        f"{layer}{theirs}_layernorm": BLOCK + ours for theirs, ours in _NORMS[lm.norm_place].items()
    }
    if lm.qk_norm or lm.head_norm:
        norms |= {
            f"{layer}self_attn.{name[0]}_norm": f"{BLOCK}attention/{name}_norm"
            for name in ("query", "key")
        }
    return (
        *lm_rules.separate(lm, [f"{layer}self_attn.{part}_proj" for part in "qkv"]),
        *lm_rules.out(lm, f"{layer}self_attn.o_proj"),
        *lm_rules.feed_forward(
            lm, {part: f"{layer}mlp.{part}_proj" for part in ("gate", "up", "down")}
        ),
        *(rule for theirs, ours in norms.items() for rule in lm_rules.norm(lm, theirs, ours)),
        *lm_rules.norm(lm, "norm", "lm/final_norm"),
    )
