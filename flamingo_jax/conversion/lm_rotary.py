"""Reads rotary positions, and which layers have a window, from a publisher's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.conversion.config_json import Fields
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.nn.embed import RotaryScaling

_ROTARY = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor"),
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}

_KINDS = ("full_attention", "sliding_attention")  # of layers, as transformers names them


def rotary(fields: Fields) -> dict[str, Any]:
    """Returns the options of rotary positions, as transformers 4 and 5 write them.

    Raises:
        ConversionError: if our block does not have their kind of scaling.
    """
    content = fields.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(content, Mapping):
        raise ConversionError(
            f"config.json: the scaling of rotary positions is {content!r}; expected an object."
        )
    rope = Fields(content)
    name = "rope_type" if rope.get("rope_type", default=None) else "type"
    kind = rope.only(name, "default", "linear", "llama3", default="default")
    if unknown := sorted(set(content) - _ROTARY):
        raise ConversionError(
            f"config.json: the scaling of rotary positions has {', '.join(unknown)}; supported is "
            f"{', '.join(sorted(_ROTARY))}. This model cannot be converted."
        )
    scaling = RotaryScaling()
    if kind == "default" and rope.get("factor", default=1.0) != 1.0:
        raise ConversionError(
            f"config.json: the rotary positions have factor {rope.get('factor')!r} and no kind of "
            "scaling (rope_type); expected linear or llama3. Put the publisher's there."
        )
    if kind != "default":
        scaling = RotaryScaling(factor=float(rope.get("factor")))
    if kind == "llama3":
        scaling = dataclasses.replace(
            scaling,
            low=float(rope.get("low_freq_factor")),
            high=float(rope.get("high_freq_factor")),
            original_length=rope.get("original_max_position_embeddings"),
        )
    base = fields.get(
        "rope_parameters.rope_theta", "rope_theta", "rotary_emb_base", default=10_000.0
    )
    return {"position": "rotary", "rotary_base": float(base), "rotary_scaling": scaling}


def two_bases(fields: Fields, *, base: float, local: float) -> dict[str, Any]:
    """Returns the options of rotary positions that differ in layers with a window (Gemma 3).

    transformers 5 has an object for each of the two kinds of layers; transformers 4 has
    rope_theta, rope_scaling and rope_local_base_freq.

    Args:
        fields: of config.json.
        base: of layers without a window, if the file does not say it.
        local: of layers with a window, if the file does not say it.

    Raises:
        ConversionError: as `rotary`, or if the layers with a window are scaled.
    """
    whole = fields.get("rope_parameters", "rope_scaling", default={})
    near: Any = {}
    if isinstance(whole, Mapping) and not whole.keys().isdisjoint(_KINDS):
        whole, near = (whole.get(kind) or {} for kind in _KINDS)
    theta = fields.get("rope_theta", default=base)
    found = rotary(Fields({"rope_theta": theta, "rope_parameters": whole}))
    near_theta = fields.get("rope_local_base_freq", default=local)
    windowed = rotary(Fields({"rope_theta": near_theta, "rope_parameters": near}))
    if windowed["rotary_scaling"] != RotaryScaling():
        raise ConversionError(
            "config.json: the rotary positions of layers with a window are scaled "
            f"({near!r}); supported is no scaling. This model cannot be converted."
        )
    return {**found, "local_rotary_base": windowed["rotary_base"]}


def windows(fields: Fields, *, every: int) -> dict[str, Any]:
    """Returns the window, and which layers have none: every n-th.

    Args:
        fields: of config.json, with layer_types, or sliding_window_pattern = n.
        every: n, if the file does not say it.

    Raises:
        ConversionError: if the layers without a window are not every n-th.
    """
    window = fields.get("sliding_window", default=0)
    number = fields.get("num_hidden_layers")
    every = fields.get("sliding_window_pattern", "_sliding_window_pattern", default=every)
    kinds = fields.get("layer_types", default=None)
    found = every if kinds is None else _every(kinds)
    if found is None or (kinds is not None and len(kinds) != number):
        raise ConversionError(
            f"config.json: layer_types is {kinds!r}; supported is one kind for each of the "
            f"{number} layers, 'sliding_attention', but for every n-th, 'full_attention'. This "
            "model cannot be converted."
        )
    if found == 1 or not window:
        return {"sliding_window": 0, "global_every": 0}
    return {"sliding_window": window, "global_every": found}


def _every(kinds: Sequence[Any]) -> int | None:
    """Returns n if every n-th layer is without a window; 0 if none is; None for other orders."""
    whole, near = _KINDS
    first = kinds.index(whole) + 1 if whole in kinds else 0
    expected = [whole if first and i % first == 0 else near for i in range(1, len(kinds) + 1)]
    return first if list(kinds) == expected else None
