"""Checks that numbers are finite, where they leave a model or enter a metric.

    model --features, latents, scores--> finite(...) --> ranks, metrics, files

NaN compares as neither larger nor smaller than any number. So a model with one broken weight could
count as right everywhere: no candidate would come before the right one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_NOTHING_TO_ADD = "Check the weights of the model."


class NonFiniteError(FloatingPointError, ValueError):
    """A number of a model is NaN or infinite: nothing that depends on it has a value."""


def finite(
    values: np.ndarray | Sequence[float | bool],
    what: str,
    *,
    why: Callable[[], str] = lambda: _NOTHING_TO_ADD,
) -> np.ndarray:
    """Returns the numbers as an array, if all are finite.

    Args:
        values: the numbers; the first axis counts rows.
        what: what they are, in the plural, such as "the scores of query 7".
        why: gives the end of the message: the cause if it is known, and what to do. It is called
            only if a number is not finite.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    array = np.asarray(values)
    # bfloat16 is no floating type for numpy, and its isfinite is slow.
    is_finite = np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32))
    if is_finite.all():
        return array
    place = tuple(np.argwhere(~is_finite)[0].tolist())
    row = f" in row {place[0]}" if len(place) > 1 else ""
    bad = int(is_finite.size - is_finite.sum())
    raise NonFiniteError(
        f"{what[:1].upper()}{what[1:]} are not finite: {bad} of {is_finite.size} numbers, the "
        f"first is {float(array[place])}{row}. {why()}"
    )


def without_non_finite(value: Any) -> Any:
    """Returns a value for JSON, which has no NaN and no infinity: None in their place.

    Lists and mappings are copied.
    """
    if isinstance(value, Mapping):
        return {name: without_non_finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_non_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
