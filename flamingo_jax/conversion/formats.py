"""Recognises files that hold no plain weights: quantised models and adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from flamingo_jax.checkpoint.arrays import few
from flamingo_jax.conversion.reading import ConversionError

# ends of the names of weights in formats that are no plain matrices -> the format
_FORMATS = {
    ("qweight", "qzeros", "scales", "g_idx"): "quantised (GPTQ or AWQ)",
    ("SCB", "weight_format", "absmax", "quant_map", "bitsandbytes__nf4"): (
        "quantised (bitsandbytes)"
    ),
    ("weight_scale", "weight_scale_inv", "input_scale", "weight_packed"): "quantised",
    ("lora_A.weight", "lora_B.weight", "lora_embedding_A"): "adapters (LoRA)",
}


def check_names(left: Sequence[str]) -> None:
    """Checks the names of weights that no rule reads.

    Raises:
        ConversionError: if they are those of a quantised model or an adapter.
    """
    for ends, what in _FORMATS.items():
        if found := [name for name in left if name.endswith(tuple(f".{end}" for end in ends))]:
            raise ConversionError(
                f"{len(found)} weights of the files are {what}: {few(found)}. Only plain weights "
                "can be converted: take the original model, or merge adapters into it first."
            )


def check_dtypes(dtypes: Mapping[str, Any]) -> None:
    """Checks the dtypes of the weights that are read, {name: dtype}.

    Raises:
        ConversionError: if one is not floating point.
    """
    if wrong := [n for n in sorted(dtypes) if not jnp.issubdtype(dtypes[n], jnp.floating)]:
        named = [f"{name}: {dtypes[name]}" for name in wrong]
        raise ConversionError(
            f"{len(wrong)} weights of the files are not floating point: {few(named)}. "
            "Expected float32, float16 or bfloat16; a quantised checkpoint cannot be converted, "
            "take the original."
        )
