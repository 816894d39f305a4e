"""The table of OpenFlamingo's weights and ours, for both directions.

perceiver.layers.0.0.to_kv.weight [2*H*K, E]
    --Pair.take-->  flamingo/resampler/layers/{key, value}/w [E, H, K], slice 0
    <--Pair.back--
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from flamingo_jax.conversion import transforms
from flamingo_jax.conversion.transforms import Transform
from flamingo_jax.tokenizers.markers import EOC, IMAGE_TAG

HEADS, HEAD_DIM = 8, 64  # of all their cross-attention; fixed in their code
XATTN_OPTIONS = {"activation": "gelu_exact", "media": "resampler", "media_norm": False}
RESAMPLER_OPTIONS = {
    "input_projection": False,
    "activation": "gelu_exact",
    "attention_bias": False,
    "mlp_bias": False,
    "final_norm": True,
}
NEW_TOKENS = (EOC, IMAGE_TAG, "<PAD>")
"""Our names of <|endofchunk|>, <image> and <PAD> (only if their tokenizer had no padding)."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One weight of theirs, and the weights of ours that it becomes.

    Attributes:
        source: its name; `{layer}` is the number of a layer.
        targets: one path, or two if it contains two of our weights.
        take: for each target, the transform theirs -> ours.
        back: the transform ours -> theirs.
    """

    source: str
    targets: tuple[str, ...]
    take: tuple[Transform, ...] = (transforms.identity,)
    back: Callable[..., np.ndarray] = transforms.identity


def _linear(source: str, target: str) -> Pair:
    return Pair(f"{source}.weight", (f"{target}/w",), (transforms.transpose,), transforms.transpose)


def _norm(source: str, target: str) -> tuple[Pair, Pair]:
    return Pair(f"{source}.weight", (f"{target}/scale",)), Pair(
        f"{source}.bias", (f"{target}/offset",)
    )


def _attention(source: str, target: str, out: str) -> tuple[Pair, Pair, Pair]:
    """Queries; keys and values (one weight in theirs); and the output."""
    heads_in = transforms.heads_in(HEADS, HEAD_DIM)
    halves = tuple(transforms.chain(transforms.chunk(half, 2), heads_in) for half in range(2))

    def joined(*ours: np.ndarray) -> np.ndarray:
        return np.concatenate([w.transpose(1, 2, 0).reshape(-1, w.shape[0]) for w in ours])

    return (
        Pair(f"{source}.to_q.weight", (f"{target}/query/w",), (heads_in,), joined),
        Pair(f"{source}.to_kv.weight", (f"{target}/key/w", f"{target}/value/w"), halves, joined),
        Pair(
            f"{source}.to_out.weight",
            (f"{target}/{out}/w",),
            (transforms.heads_out(HEADS, HEAD_DIM),),
            lambda w: w.transpose(2, 0, 1).reshape(w.shape[2], -1),
        ),
    )


RESAMPLER: tuple[Pair, ...] = (
    Pair("perceiver.latents", ("flamingo/resampler/latents",)),
    *_norm("perceiver.layers.{layer}.0.norm_media", "flamingo/resampler/layers/media_norm"),
    *_norm("perceiver.layers.{layer}.0.norm_latents", "flamingo/resampler/layers/latents_norm"),
    *_attention("perceiver.layers.{layer}.0", "flamingo/resampler/layers", "output"),
    *_norm("perceiver.layers.{layer}.1.0", "flamingo/resampler/layers/ffw_norm"),
    _linear("perceiver.layers.{layer}.1.1", "flamingo/resampler/layers/ffw/up"),
    _linear("perceiver.layers.{layer}.1.3", "flamingo/resampler/layers/ffw/down"),
    *_norm("perceiver.norm", "flamingo/resampler/final_norm"),
)
TIME = Pair("perceiver.frame_embs", ("flamingo/resampler/time_embeddings",))
"""In models that were trained on videos; no release has it."""


def xattn_pairs(layers: str) -> tuple[Pair, ...]:
    """Returns the pairs of the gated layers; `layers`: name of the LM's list of blocks."""
    source = f"{layers}.{{layer}}.gated_cross_attn_layer"
    gates = (("attn_gate", "attention_gate"), ("ff_gate", "dense_gate"))
    return (
        *_norm(f"{source}.attn.norm", "flamingo/xattn/block/query_norm"),
        *_attention(f"{source}.attn", "flamingo/xattn/block", "out"),
        *_norm(f"{source}.ff.0", "flamingo/xattn/block/mlp_norm"),
        _linear(f"{source}.ff.1", "flamingo/xattn/block/mlp/up"),
        _linear(f"{source}.ff.3", "flamingo/xattn/block/mlp/down"),
        *(
            Pair(
                f"{source}.{theirs}",
                (f"flamingo/xattn/block/{ours}",),
                (transforms.scalar,),
                lambda w: w.reshape(1),
            )
            for theirs, ours in gates
        ),
    )


@dataclasses.dataclass(frozen=True)
class FlamingoLayout:
    """Names of a language model's weights in their checkpoints.

    Attributes:
        layers: the list of blocks.
        embedding: the token table.
        others: regular expression of its other weights outside of the blocks.
        heads: names of the output table in different versions of transformers. A tied table may be
            stored too.
    """

    layers: str
    embedding: str
    others: str
    heads: tuple[str, ...] = ("lang_encoder.lm_head.weight",)


LAYOUTS: Mapping[str, FlamingoLayout] = {
    "mpt": FlamingoLayout(
        "lang_encoder.transformer.blocks",
        "lang_encoder.transformer.wte.weight",
        r"lang_encoder\.transformer\.(norm_f|ln_f)\..*",
    ),
    "gpt_neox": FlamingoLayout(
        "lang_encoder.gpt_neox.layers",
        "lang_encoder.gpt_neox.embed_in.weight",
        r"lang_encoder\.gpt_neox\.(final_layer_norm|rotary_emb)\..*",
        ("lang_encoder.embed_out.weight", "lang_encoder.lm_head.weight"),
    ),
    "llama": FlamingoLayout(
        "lang_encoder.model.layers",
        "lang_encoder.model.embed_tokens.weight",
        r"lang_encoder\.model\.(norm|rotary_emb)\..*",
    ),
    "opt": FlamingoLayout(
        "lang_encoder.model.decoder.layers",
        "lang_encoder.model.decoder.embed_tokens.weight",
        r"lang_encoder\.model\.decoder\.(final_layer_norm|embed_positions)\..*",
    ),
}
