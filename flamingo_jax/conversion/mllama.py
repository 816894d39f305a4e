"""Converts Llama 3.2 Vision, 11B and 90B, and their instruct forms (Meta, 2024; "mllama").

One directory contains a tiled ViT, and a Llama 3.1 of 8B or 70B with layers of cross-attention:

    vision_model                       tiled ViT (`mllama_vision`)          -> flamingo/vision
    multi_modal_projector              its features, to the LM's width      -> flamingo/media
    language_model.model.layers        3, 8, 13, ...: cross-attention with  -> flamingo/xattn
                                       a feed-forward layer, both gated
                                       the others: Llama's blocks           -> flamingo/lm
    language_model.model.embed_tokens  128,256 rows                         -> flamingo/lm
                                       8 rows more, the first of them of    -> flamingo/new_tokens
                                       `<|image|>`: they have no output
    language_model.lm_head             128,256 rows                         -> flamingo/lm

transformers 5 has these names in memory in another order (`model.language_model`). There is no
resampler: a token attends all features of all tiles of an image, and of the images directly before
it.

A token before the first image gets exactly 0 from attention and feed-forward layer, as in Meta's
code. transformers gives it attention over all tiles of all images, also of padding and of images
that come later. That is not carried over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from flamingo_jax.conversion import lm_llama, mllama_vision, transforms
from flamingo_jax.conversion.clip import read_preprocessing
from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.mapping import (
    LAYER,
    Conversion,
    Rule,
    Rules,
    Skip,
    with_prefixes,
)
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import (
    ConversionError,
    Weights,
    open_weights,
    read_config,
    read_object,
)
from flamingo_jax.core.paths import Path
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.tokenizers.base import SPECIAL_TOKENS_NAMES
from flamingo_jax.tokenizers.chat_template import LLAMA
from flamingo_jax.tokenizers.markers import IMAGE_TAG, Markers

Form = Literal["base", "instruct"]

END_OF_TURN = "<|eot_id|>"  # ends an answer of the instruct models
NEWLINE = "Ċ"  # the piece of a line break; ends an example in the prompts of the base models

# (field of config.json, the only supported value, the value of a missing field)
_ONLY = (
    ("model_type", "mllama", "missing"),
    ("quantization_config", None, None),
    ("tie_word_embeddings", False, False),
    ("text_config.tie_word_embeddings", False, False),
    ("text_config.hidden_act", "silu", "silu"),
)
# config.json omits fields that have the default of its class.
_TEXT_DEFAULTS = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
}


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of the directory that `--input` names.

    The option `form` is "base" or "instruct"; without it, the publisher's tokenizer says which: an
    instruct model ends a text with `<|eot_id|>`.

    Raises:
        ConversionError: as `describe`, or if an option is unknown.
    """
    check_options(inputs, "form")
    form = inputs.options.get("form") or form_of(inputs.directory)
    if form not in get_args(Form):
        raise ConversionError(f"form is {form!r}; expected one of {', '.join(get_args(Form))}.")
    described = describe(
        read_config(inputs.input),
        open_weights(inputs.input),
        read_preprocessing(inputs.directory),
        form=cast(Form, form),
    )
    return described.with_tokenizer(inputs.directory)


def describe(
    config: Mapping[str, Any],
    files: Weights,
    preprocessor: Mapping[str, Any],
    *,
    form: Form = "base",
) -> Conversion:
    """Returns the conversion of one model.

    Args:
        config: content of config.json.
        files: the weights.
        preprocessor: content of preprocessor_config.json; it may be empty.
        form: whether it was trained on conversations.

    Raises:
        ConversionError: if the config is of another model, or has cross-attention in places that
            are not evenly spread.
    """
    fields = Fields(config)
    for name, value, default in _ONLY:
        fields.only(name, value, default=default)
    stored = fields.get("text_config", default={})
    text = Fields(_TEXT_DEFAULTS | {name: v for name, v in stored.items() if v is not None})
    vision = mllama_vision.vision_config(fields.get("vision_config", default={}), preprocessor)
    own, cross = _layers(text)
    lm = lm_llama.llama(text.with_values({"num_hidden_layers": len(own)}), text.get("vocab_size"))
    xattn = _xattn_config(lm, own, cross)
    prefix, others, head = _prefixes(files.names())
    new_tokens = _new_tokens(fields, lm, files, f"{prefix}embed_tokens.weight")
    model = ModelConfig(
        tiled_vit=vision,
        lm=lm,
        xattn=xattn,
        new_tokens=new_tokens,
        predicts_new_tokens=False,
    )
    rows = lm.vocab_size
    pad = transforms.pad_rows(lm.vocab_multiple)
    return Conversion(
        kind="flamingo",
        model=model,
        rules=(
            *with_prefixes(
                mllama_vision.tower_rules(vision),
                source=f"{others}vision_model.",
                target="flamingo/vision/",
            ),
            *with_prefixes(
                mllama_vision.projector_rules(),
                source=f"{others}multi_modal_projector.",
                target="flamingo/media/",
            ),
            *_numbered(
                with_prefixes(lm_llama.rules(lm, ()), source=prefix, target="flamingo/"), own
            ),
            *_numbered(
                with_prefixes(
                    _xattn(lm),
                    source=f"{prefix}layers.{LAYER}.",
                    target="flamingo/xattn/block/",
                ),
                cross,
            ),
            Rule(
                f"{prefix}embed_tokens.weight",
                "flamingo/lm/embedding",
                transforms.chain(transforms.rows(0, rows), pad),
            ),
            Rule(
                f"{prefix}embed_tokens.weight",
                "flamingo/new_tokens/input",
                transforms.rows(rows, None),
            ),
            Rule(head, "flamingo/lm/head", pad),
            Skip(r"(.*\.)?rotary_emb\.inv_freq", "follows from the config"),
        ),
        files=files,
        preprocessing={
            **mllama_vision.images(vision),
            **({"chat": dataclasses.asdict(LLAMA)} if form == "instruct" else {}),
        },
        markers=markers(form, lm.vocab_size),
    )


def markers(form: Form, vocab_size: int) -> Markers:
    """Returns the markers of its prompts; there is no end of chunk between text and image.

    An answer of an instruct model ends with `<|eot_id|>`. One of a base model ends with a line
    break, like the few-shot examples: it has learnt no other end than that of the document. `<EOC>`
    in a prompt becomes this marker.
    """
    return Markers(
        end_of_chunk=END_OF_TURN if form == "instruct" else NEWLINE,
        closes_chunks=False,
        image=(IMAGE_TAG,),
        after_image="",
        vocab_size=vocab_size,
    )


def form_of(directory: Path) -> Form:
    """Returns which model a directory holds, by the token that ends its texts."""
    for name in SPECIAL_TOKENS_NAMES:
        if not (directory / name).exists():
            continue
        end = read_object(directory / name).get("eos_token")
        end = end.get("content") if isinstance(end, Mapping) else end
        if end:
            return "instruct" if end == END_OF_TURN else "base"
    return "base"


def _layers(text: Fields) -> tuple[list[int], list[int]]:
    """Returns the numbers of the layers of self-attention, and of those of cross-attention."""
    count, cross = text.get("num_hidden_layers"), text.get("cross_attention_layers")
    cross = sorted(cross)
    own = [number for number in range(count) if number not in set(cross)]
    if not cross or not own or len(own) + len(cross) != count:
        raise ConversionError(
            f"config.json: cross_attention_layers is {cross}; expected some of the numbers 0 to "
            f"{count - 1}, each of them once, and not all. Compare it with the publisher's."
        )
    return own, cross


def _xattn_config(lm: LMConfig, own: Sequence[int], cross: Sequence[int]) -> XattnConfig:
    """Returns the layers of cross-attention, which must be before every n-th block."""
    before = [number - count for count, number in enumerate(cross)]  # blocks in front of each
    every = before[1] - before[0] if len(before) > 1 else len(own)
    if not before[0] < every or list(range(before[0], len(own), every)) != before:
        raise ConversionError(
            f"config.json: cross_attention_layers is {list(cross)}; supported is a layer before "
            "every n-th of the other layers, up to the last one. This model cannot be converted."
        )
    return XattnConfig(
        every=every,
        offset=before[0],
        num_kv_heads=lm.num_kv_heads,
        activation="swiglu",
        mlp_width=lm.mlp_width,
        media_norm=False,
        norm="rms",
        norm_epsilon=lm.norm_epsilon,
        qk_norm=True,
        attend="run",
        skip_unseen=True,
    )


def _prefixes(names: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the prefix of the text model, the prefix of the rest, and the name of the head.

    The files of the publisher have the names of transformers 4.
    """
    if any(name.startswith("model.language_model.") for name in names):
        return "model.language_model.", "model.", "lm_head.weight"
    return "language_model.model.", "", "language_model.lm_head.weight"


def _numbered(rules: Rules, layers: Sequence[int]) -> Rules:
    """Returns the rules with the numbers that the layers have in the files."""
    return tuple(
        dataclasses.replace(rule, layers=layers)
        if isinstance(rule, Rule) and rule.is_stacked
        else rule
        for rule in rules
    )


def _xattn(lm: LMConfig) -> Rules:
    """Returns the rules of a layer."""
    heads = {"query": lm.num_heads, "key": lm.kv_heads, "value": lm.kv_heads}
    norms = {
        "input_layernorm": "query_norm",
        "post_attention_layernorm": "mlp_norm",
        "cross_attn.q_norm": "query_head_norm",
        "cross_attn.k_norm": "key_head_norm",
    }
    return (
        Rule("cross_attn_attn_gate", "attention_gate", transforms.scalar),
        Rule("cross_attn_mlp_gate", "dense_gate", transforms.scalar),
        *(Rule(f"{theirs}.weight", f"{ours}/scale") for theirs, ours in norms.items()),
        *(
            Rule(
                f"cross_attn.{part[0]}_proj.weight",
                f"{part}/w",
                transforms.heads_in(number, lm.head_size),
            )
            for part, number in heads.items()
        ),
        Rule("cross_attn.o_proj.weight", "out/w", transforms.heads_out(lm.num_heads, lm.head_size)),
        *(
            Rule(f"mlp.{part}_proj.weight", f"mlp/{part}/w", transforms.transpose)
            for part in ("gate", "up", "down")
        ),
    )


def _new_tokens(fields: Fields, lm: LMConfig, files: Weights, embedding: str) -> tuple[str, ...]:
    """Returns the tokens of the embedding's last rows; one is `<|image|>`, our `<image>`."""
    stored = files.names().get(embedding)
    if stored is None:
        raise ConversionError(
            f"The files hold no {embedding}. Check that config.json is theirs, and that no shard "
            "is missing."
        )
    count = stored.shape[0] - lm.vocab_size
    image = fields.get("image_token_index", "image_token_id", default=128_256) - lm.vocab_size
    if not 0 <= image < count:
        raise ConversionError(
            f"config.json: image_token_index is {image + lm.vocab_size}, and the embedding has "
            f"{stored.shape[0]} rows, {lm.vocab_size} of them of the vocabulary; expected the "
            "number of one of the other rows."
        )
    return tuple(IMAGE_TAG if n == image else f"<additional_{n}>" for n in range(count))
