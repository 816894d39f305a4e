"""Converts a Flamingo back to OpenFlamingo's checkpoint.pt, for use in PyTorch.

    model, _, tokenizer = open_flamingo.create_model_and_transforms(
        ..., cross_attn_every_n_layers=n)                                # with their towers
    model.load_state_dict(torch.load("checkpoint.pt"), strict=False)

This applies the table of `open_flamingo_layout` in the other direction. The file contains what
OpenFlamingo publishes: perceiver, gated layers, token tables. The frozen towers must be theirs, and
the model must have their architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import values
from flamingo_jax.conversion.open_flamingo_layout import (
    HEAD_DIM,
    HEADS,
    LAYOUTS,
    NEW_TOKENS,
    RESAMPLER,
    RESAMPLER_OPTIONS,
    XATTN_OPTIONS,
    FlamingoLayout,
    Pair,
    xattn_pairs,
)
from flamingo_jax.conversion.reading import ConversionError, package
from flamingo_jax.core import paths, trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.core.precision import is_int8
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.models.lm import LMConfig

_THEIRS = {
    "resampler": {
        "kind": "perceiver",
        "num_layers": 6,
        "num_heads": HEADS,
        "head_dim": HEAD_DIM,
        "num_latents": 64,
        "num_time_embeddings": 0,
        "mlp_ratio": 4,
        "qk_norm": False,
        "epsilon": 1e-5,
        **RESAMPLER_OPTIONS,
    },
    "xattn": {
        "num_heads": HEADS,
        "head_dim": HEAD_DIM,
        "mlp_ratio": 4,
        "mlp_width": 0,
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "qk_norm": False,
        "gate": "scalar",
        "dense": True,
        "attend": "last",
        "unseen": "zero",
        "grafted_layers": 0,
        **XATTN_OPTIONS,
    },
    "vit": {"features": "patches", "final_norm": False},
}
"""Fields that are fixed in their `Flamingo` class: part of the model -> field -> value."""


def write(checkpoint: Path, output: Path) -> str:
    """Writes checkpoint.pt; the whole model is in memory.

    Args:
        checkpoint: an export, a WORKDIR or one of its steps, of a Flamingo.
        output: the file.

    Returns:
        A line that describes the file.

    Raises:
        ConversionError: as `state_dict`, or if the model is of another kind or in 8 bits, or a
            weight is not finite.
        CheckpointError: if there is no such checkpoint.
    """
    opened = open_checkpoint(checkpoint)
    if opened.kind != "flamingo":
        raise ConversionError(
            f"{opened.path} is a {opened.kind}; expected a flamingo. Give --input of that stage."
        )
    if any(map(is_int8, trees.flatten(opened.params).values())):
        raise ConversionError(
            f"{opened.path} is in 8 bits, which OpenFlamingo cannot read. Give --input of the "
            "export that it was made from."
        )
    weights = state_dict(from_dict(ModelConfig, opened.model_config, where="model"), opened.params)
    values.check_finite(weights)
    torch = package("torch")

    def tensor(x: np.ndarray) -> Any:
        if x.dtype == jnp.bfloat16:  # torch cannot convert it from numpy
            return torch.from_numpy(np.array(x).view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.array(x))

    with paths.written_locally(output) as file:
        torch.save({name: tensor(weight) for name, weight in weights.items()}, str(file))
    return f"{output}: {len(weights)} weights of {opened.path}, in the names of OpenFlamingo"


def state_dict(model: ModelConfig, params: trees.Params) -> dict[str, np.ndarray]:
    """Returns the weights with the names and shapes of OpenFlamingo; the dtypes are not changed.

    Args:
        model: a Flamingo.
        params: all its weights.

    Raises:
        ConversionError: as `check`, or if the new tokens have other rows in embedding and head
            where OpenFlamingo has one table.
    """
    layout, flat = check(model), trees.flatten(params)
    lm, every = required(model.lm, "lm"), required(model.xattn, "xattn").every
    resampler_layers = range(required(model.resampler, "resampler").num_layers)
    xattn_layers = range(every - 1, lm.num_layers, every)
    out = dict(_renamed(RESAMPLER, flat, resampler_layers))
    out.update(_renamed(xattn_pairs(layout.layers), flat, xattn_layers))
    read = lambda path: np.asarray(flat[f"flamingo/{path}"])
    known = lm.vocab_size
    new = {name: read(f"new_tokens/{name}") for name in ("input", "output")}
    out[layout.embedding] = np.concatenate([read("lm/embedding")[:known], new["input"]])
    if not lm.tied_head:
        head = np.concatenate([read("lm/head")[:known], new["output"]])
        return out | dict.fromkeys(layout.heads, head)
    if not np.array_equal(new["input"], new["output"]):
        raise ConversionError(
            "The rows of the new tokens in the embedding and in the head differ, since they were "
            "trained apart; OpenFlamingo with a tied language model (the 3B and the 9B) has one "
            "row for both, and cannot hold this model. What was converted and not yet trained can "
            "go back, and so can further training of a model with a head of its own (the 4B)."
        )
    return out


def check(model: ModelConfig) -> FlamingoLayout:
    """Returns the names of the language model's weights in their checkpoint.

    Raises:
        ConversionError: if OpenFlamingo cannot represent the model; names the fields.
    """
    if model.vit is None:
        raise ConversionError(
            "This model has an NFNet as its vision encoder; OpenFlamingo has a ViT of CLIP. Only "
            "models of its geometry can be written for it."
        )
    wrong = [
        f"{part}.{field} = {value!r} (theirs: {theirs!r})"
        for part, fields in _THEIRS.items()
        for field, theirs in fields.items()
        if (value := getattr(required(getattr(model, part), part), field)) != theirs
    ]
    xattn = required(model.xattn, "xattn")
    if xattn.offset != xattn.every - 1:
        wrong.append(f"xattn.offset = {xattn.offset} (theirs: every - 1 = {xattn.every - 1})")
    if model.new_tokens not in (NEW_TOKENS, NEW_TOKENS[:2]):
        wrong.append(f"new_tokens = {model.new_tokens} (theirs: {NEW_TOKENS}, or the first two)")
    family = _family(required(model.lm, "lm"))
    if family is None:
        wrong.append(f"lm = {model.lm} (theirs: one of {', '.join(LAYOUTS)})")
    if wrong or family is None:
        raise ConversionError(
            f"This model is none that OpenFlamingo can hold: {'; '.join(wrong)}. Only models of "
            "its geometry can be written for it."
        )
    return LAYOUTS[family]


def _family(lm: LMConfig) -> str | None:
    """Returns the family of language models that has these options."""
    if lm.position == "alibi":
        return "mpt"
    if lm.position == "rotary":
        return "llama" if lm.norm == "rms" else "gpt_neox"
    return "opt" if lm.position == "learned" and lm.activation == "relu" else None


def _renamed(
    pairs: tuple[Pair, ...], flat: Mapping[str, Any], layers: range
) -> Iterator[tuple[str, np.ndarray]]:
    for pair in pairs:
        ours = [np.asarray(flat[target]) for target in pair.targets]
        if "{layer}" not in pair.source:
            yield pair.source, np.ascontiguousarray(pair.back(*ours))
            continue
        for index, layer in enumerate(layers):
            theirs = pair.back(*(w[index] for w in ours))
            yield pair.source.replace("{layer}", str(layer)), np.ascontiguousarray(theirs)
