"""Converts OpenFlamingo's checkpoints: v2 (3B, 4B, 9B, instruction-tuned) and the deprecated 9B.

    checkpoint.pt: perceiver, gated layers, token table (new rows last)  -> flamingo/resampler,
                                                                            xattn, new_tokens
    --lm:          the frozen language model, as its publisher has it    -> flamingo/lm
    --vision:      CLIP ViT-L/14                                         -> flamingo/vision

Their model is ours with other options. The features go directly into the resampler. There are no
time embeddings, and no projection of the visual tokens to the LM's width. The cross-attention has 8
heads of size 64 and no norm on the visual tokens. GeLU is exact, and there are no biases. With
"every n", a gated layer is before block n-1, 2n-1, ... The rows after those of the tokenizer are
`<|endofchunk|>`, `<image>` and in some models `<PAD>`, in this order.

The names are in `open_flamingo_layout`. `export_open_flamingo` converts in the other direction.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from flamingo_jax.checkpoint.arrays import few
from flamingo_jax.conversion import clip, hf_lm, open_clip, reading, transforms
from flamingo_jax.conversion.mapping import Constant, Conversion, Rule, Rules, Skip, with_prefixes
from flamingo_jax.conversion.open_flamingo_layout import (
    HEAD_DIM,
    HEADS,
    LAYOUTS,
    NEW_TOKENS,
    RESAMPLER,
    RESAMPLER_OPTIONS,
    TIME,
    XATTN_OPTIONS,
    FlamingoLayout,
    Pair,
    xattn_pairs,
)
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, Weights
from flamingo_jax.core.paths import Path
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.tokenizers.markers import Markers


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a checkpoint, and of the two towers that it does not contain.

    If the vision encoder is a file in open_clip's layout without a config, the options `heads` and
    `activation` are those of `open_clip.conversion`. The default of `activation` is "quick_gelu",
    of OpenAI's encoder, with which all releases were trained.

    Raises:
        ConversionError: if a tower is missing, or the three do not belong together.
    """
    check_options(inputs, "lm", "vision", "activation", "heads")
    if inputs.lm is None or inputs.vision is None:
        raise ConversionError(
            f"{inputs.input} holds what OpenFlamingo trained. Give its frozen parts too: --lm=DIR, "
            "the language model as its publisher has it, with its tokenizer, and --vision=PATH, "
            "CLIP ViT-L/14."
        )
    checkpoint, lm = reading.open_weights(inputs.input), hf_lm.conversion(Inputs(inputs.lm))
    published = required(lm.tokenizer, "tokenizer")
    joined = join(checkpoint, lm, _vision(inputs.vision, inputs.options), pieces=published.num_ids)
    published = published.in_model(joined.markers or Markers(), joined.model.new_tokens)
    return dataclasses.replace(joined, tokenizer=published)


def join(checkpoint: Weights, lm: Conversion, vision: Conversion, *, pieces: int) -> Conversion:
    """Returns the conversion of a checkpoint with its towers.

    Args:
        checkpoint: the weights of checkpoint.pt.
        lm: the language model alone, as `hf_lm` describes it.
        vision: the vision encoder alone, as `clip` describes it.
        pieces: number of pieces of the LM's tokenizer; the rows of the new tokens come after them.

    Raises:
        ConversionError: if they do not belong together.
    """
    names = checkpoint.names()
    layout = _layout(names)
    config = required(lm.model.lm, "lm")
    places, xattn = _xattn(names, layout, config)
    resampler = _resampler(names, required(vision.model.vit, "vit").width)
    new = _new_tokens(names, layout, pieces)
    rules = (
        *_rules((*RESAMPLER, *([TIME] if resampler.num_time_embeddings else [])), None),
        *_rules(xattn_pairs(layout.layers), places),
        *_tables(names, layout, lm, pieces),
        *_frozen_copies(layout),
        *with_prefixes(vision.rules, source="vision:", target="flamingo/"),
    )
    model = ModelConfig(
        vision=None,
        vit=vision.model.vit,
        resampler=resampler,
        lm=dataclasses.replace(config, vocab_size=pieces),
        xattn=xattn,
        new_tokens=new,
    )
    return Conversion(
        kind="flamingo",
        model=model,
        rules=rules,
        files=reading.Merged(("", checkpoint), ("lm:", lm.files), ("vision:", vision.files)),
        # Its images come through open_clip's transform, which ignores the transparency.
        preprocessing={**vision.preprocessing, "background": "none"},
        markers=dataclasses.replace(lm.markers or Markers(), after_image="", vocab_size=pieces),
    )


def _vision(path: Path, options: Mapping[str, str]) -> Conversion:
    """Returns the conversion of the vision encoder, in the layout of transformers or open_clip."""
    inputs = Inputs(path, options=options)
    if (inputs.directory / open_clip.CONFIG).exists():
        return open_clip.conversion(inputs)
    if (inputs.directory / "config.json").exists():
        return clip.conversion(inputs)
    return open_clip.conversion(Inputs(path, options={"activation": "quick_gelu", **options}))


def _rules(pairs: Sequence[Pair], layers: Sequence[int] | None) -> Rules:
    return tuple(
        Rule(pair.source, target, take, layers if "{layer}" in pair.source else None)
        for pair in pairs
        for target, take in zip(pair.targets, pair.take, strict=True)
    )


def _layout(names: Mapping[str, jax.ShapeDtypeStruct]) -> FlamingoLayout:
    found = [
        layout
        for layout in LAYOUTS.values()
        if any(name.startswith(f"{layout.layers}.") for name in names)
    ]
    if len(found) != 1:
        raise ConversionError(
            "No checkpoint of OpenFlamingo: it has gated layers in none of "
            f"{', '.join(layout.layers for layout in LAYOUTS.values())}. It holds {len(names)} "
            f"weights: {few(sorted(names))}."
        )
    return found[0]


def _xattn(
    names: Mapping[str, jax.ShapeDtypeStruct], layout: FlamingoLayout, lm: LMConfig
) -> tuple[tuple[int, ...], XattnConfig]:
    """Returns (numbers of the blocks with a gated layer before them, options of these layers)."""
    pattern = re.compile(rf"{re.escape(layout.layers)}\.(\d+)\.gated_cross_attn_layer\.attn_gate")
    places = tuple(sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name))))
    if not places:
        raise ConversionError(
            f"No checkpoint of OpenFlamingo: {layout.layers} has no "
            "gated_cross_attn_layer.attn_gate."
        )
    every = places[0] + 1
    expected = tuple(range(every - 1, lm.num_layers, every))
    if places != expected:
        raise ConversionError(
            "The checkpoint has gated layers before the blocks "
            f"{few([str(place) for place in places])}; with the {lm.num_layers} blocks of the "
            f"language model (--lm) and one layer for every {every} of them, expected "
            f"{few([str(place) for place in expected])}. Give the language model that it was "
            "trained with."
        )
    source = f"{layout.layers}.{places[0]}.gated_cross_attn_layer"
    width = _shape(names, f"{source}.attn.norm.weight")[0]
    if width != lm.width:
        raise ConversionError(
            f"The checkpoint was trained with a language model of width {width}, --lm has "
            f"{lm.width}. Give its own."
        )
    config = XattnConfig(
        every=every,
        offset=every - 1,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        mlp_ratio=_ratio(names, f"{source}.ff.1.weight"),
        **XATTN_OPTIONS,  # type: ignore[arg-type]
    )
    return places, config


def _resampler(names: Mapping[str, jax.ShapeDtypeStruct], vision_width: int) -> ResamplerConfig:
    numbers = {
        int(found[1]) for name in names if (found := re.match(r"perceiver\.layers\.(\d+)\.", name))
    }
    latents, width = _shape(names, "perceiver.latents")
    if width != vision_width:
        raise ConversionError(
            f"The checkpoint's perceiver reads features {width} wide, --vision gives "
            f"{vision_width}. Give the encoder that it was trained with (OpenFlamingo's releases: "
            "CLIP ViT-L/14 of OpenAI, 1024 wide)."
        )
    return ResamplerConfig(
        num_layers=max(numbers, default=-1) + 1,
        width=width,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
        num_latents=latents,
        num_time_embeddings=_shape(names, TIME.source)[0] if TIME.source in names else 0,
        mlp_ratio=_ratio(names, "perceiver.layers.0.1.1.weight"),
        **RESAMPLER_OPTIONS,  # type: ignore[arg-type]
    )


def _shape(names: Mapping[str, jax.ShapeDtypeStruct], name: str) -> tuple[int, ...]:
    if name not in names:
        raise ConversionError(
            f"The checkpoint has no weight {name!r}. It holds {len(names)}: {few(sorted(names))}."
        )
    return tuple(names[name].shape)


def _ratio(names: Mapping[str, jax.ShapeDtypeStruct], up: str) -> int:
    out, into = _shape(names, up)
    return out // into


def _new_tokens(
    names: Mapping[str, jax.ShapeDtypeStruct], layout: FlamingoLayout, pieces: int
) -> tuple[str, ...]:
    rows = _shape(names, layout.embedding)[0]
    if rows - pieces not in (2, 3):
        raise ConversionError(
            f"The checkpoint's {layout.embedding} has {rows} rows and the tokenizer of --lm "
            f"{pieces} pieces; expected 2 or 3 rows more, of <|endofchunk|>, <image> and perhaps "
            "<PAD>. Give the language model, with its tokenizer, that it was trained with."
        )
    return NEW_TOKENS[: rows - pieces]


def _tables(
    names: Mapping[str, jax.ShapeDtypeStruct], layout: FlamingoLayout, lm: Conversion, pieces: int
) -> Rules:
    """Returns the rules of the LM.

    The rows of the tokenizer's pieces become the LM's tables, and the rows after them the tables of
    the new tokens.
    """
    config, new = required(lm.model.lm, "lm"), "flamingo/new_tokens"
    tables = {
        rule.target: rule
        for rule in lm.rules
        if isinstance(rule, Rule) and rule.target in ("lm/embedding", "lm/head")
    }
    rest = with_prefixes(
        tuple(rule for rule in lm.rules if rule not in tables.values()),
        source="lm:",
        target="flamingo/",
    )
    cut = transforms.chain(transforms.rows(0, pieces), transforms.pad_rows(config.vocab_multiple))
    rest_of_rows = transforms.rows(pieces, None)

    def unused(target: str) -> Rules:
        return tuple(
            Skip(re.escape(f"lm:{name}"), "the checkpoint's table has these rows too")
            for name in tables[target].sources
        )

    rules: Rules = (
        Rule(layout.embedding, "flamingo/lm/embedding", cut),
        Rule(layout.embedding, f"{new}/input", rest_of_rows),
        *unused("lm/embedding"),
        *rest,
    )
    heads = [name for name in layout.heads if name in names]
    if config.tied_head:
        why = "tied: the same as the token table"
        return (
            *rules,
            Rule(layout.embedding, f"{new}/output", rest_of_rows),
            *(Skip(re.escape(name), why, same_as=layout.embedding) for name in heads),
        )
    if heads:
        again = tuple(
            Skip(re.escape(name), "the output table under its other name", same_as=heads[0])
            for name in heads[1:]
        )
        return (
            *rules,
            Rule(heads[0], "flamingo/lm/head", cut),
            Rule(heads[0], f"{new}/output", rest_of_rows),
            *unused("lm/head"),
            *again,
        )
    (head,) = tables["lm/head"].sources
    why = (
        "NOT IN THE CHECKPOINT. OpenFlamingo draws the output rows of the new tokens anew whenever "
        "it loads this model; here they are zeros, the mean of that: <EOC> has the logit 0 and "
        "rarely ends an answer. Stop at another sign, or train them"
    )
    return (
        *rules,
        Rule(f"lm:{head}", "flamingo/lm/head", cut),
        Constant(f"{new}/output", np.zeros, why),
    )


def _frozen_copies(layout: FlamingoLayout) -> Rules:
    """Skips the other weights in the files of version 1 and of runs with FSDP."""
    lm = "a frozen copy of what --lm holds"
    return (
        Skip(
            r"lang_encoder\.(gated_cross_attn_layers|old_decoder_blocks)\..*",
            "a second time, under the names of version 1",
        ),
        Skip(rf"{re.escape(layout.layers)}\.\d+\.decoder_layer\..*", lm),
        Skip(layout.others, lm),
        Skip(r"vision_encoder\..*", "a frozen copy of what --vision holds"),
    )
