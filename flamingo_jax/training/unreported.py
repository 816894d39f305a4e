"""The metrics of updates that no report has, between a run that ends and the one that goes on.

A run that is asked to end stops after any update, and a report is the mean over `log_every` of
them. The checkpoint keeps their metrics, so that the next report is the same to the bit.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamingo_jax.training.not_finite import Row

Rows = Sequence[tuple[int, Row]]  # (updates done, metrics of the last one in float64)


def to_json(rows: Rows) -> list[Any]:
    """Returns JSON values with all bits of the numbers, also of NaN and infinity."""
    return [[step, {name: _hex(value) for name, value in row.items()}] for step, row in rows]


def from_json(values: Any) -> Rows:
    """The inverse of `to_json`.

    Raises:
        ValueError: the values are not of `to_json`.
    """
    try:
        return [
            (operator.index(step), {name: _array(value) for name, value in row.items()})
            for step, row in values
        ]
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"got {str(values)[:20]!r}, expected [[STEP, {{METRIC: NUMBER}}], ...]"
        ) from error


def _hex(value: np.ndarray) -> Any:
    return [_hex(np.asarray(part)) for part in value] if value.ndim else float(value).hex()


def _array(value: Any) -> np.ndarray:
    if isinstance(value, list):
        return np.asarray([_array(part) for part in value], np.float64)
    return np.asarray(float.fromhex(value), np.float64)
