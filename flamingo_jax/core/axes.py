"""Logical axes -> mesh axes: the whole sharding layout on one screen (paper, B.1.2: Megatron over "model").

A weight says what its dimensions are ("embed", "heads"); this table alone says where they go. QKV and up projections are
split by columns (heads, mlp), out and down projections by rows, the vocabulary by rows of the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import PartitionSpec

MeshAxes = str | tuple[str, ...] | None

RULES: Mapping[str, MeshAxes] = {
    # activations
    "batch": ("replica", "data"),
    "length": None,
    "media": ("replica", "data"),
    "frames": None,
    # weights
    "layers": None,
    "embed": None,
    "heads": "model",
    "kv_heads": "model",
    "head_dim": None,
    "mlp": "model",
    "vocab": "model",
    "new_tokens": None,
    "latents": None,
    "vision": None,
    "kernel": None,
    "joint": None,
}


def spec(axes: tuple[str | None, ...], rules: Mapping[str, MeshAxes] = RULES) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes.

    Raises:
        ValueError: for an axis that the table does not hold, or two dimensions on one mesh axis.
    """
    if unknown := [axis for axis in axes if axis is not None and axis not in rules]:
        raise ValueError(f"Unknown logical axes {unknown} in {axes}; expected some of {sorted(rules)} (core/axes.py).")
    entries = [None if axis is None else rules[axis] for axis in axes]
    used = [name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry or ())]
    if len(used) != len(set(used)):
        raise ValueError(f"Axes {axes} put two dimensions on one mesh axis: {entries}.")
    return PartitionSpec(*entries)
