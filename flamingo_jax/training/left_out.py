"""Batches that a run leaves out: `config.resume.skip_batches`.

"text:5:7" --> of dataset text the batches 5 and 6 are left out

use number        0 1 2 3 4 5 6 ...     what checkpoints count
batch number      0 1 2 3 4 7 8 ...     what is read
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flamingo_jax.core import ranges
from flamingo_jax.core.config import FieldError

_MOST_DIGITS = 20  # more than the largest number has; Python does not read thousands


class Span(NamedTuple):
    """Batches first, first + 1, ..., end - 1."""

    first: int
    end: int


def spans(texts: Sequence[str]) -> dict[str, tuple[Span, ...]]:
    """Returns {dataset: spans in order, none of which touch} of texts "DATASET:FIRST:END".

    Raises:
        FieldError: a text is of another form.
    """
    found: dict[str, list[Span]] = {}
    for text in texts:
        name, *ends = text.rsplit(":", 2)
        is_span = bool(name) and len(ends) == 2 and all(map(ranges.whole(0).holds, map(_of, ends)))
        if not is_span or _of(ends[0]) >= _of(ends[1]):
            raise FieldError(
                f"skip_batches has {text!r}; expected DATASET:FIRST:END, such as text:5:7 "
                f"for the batches 5 and 6 of dataset text, with numbers up to {ranges.INT32}."
            )
        found.setdefault(name, []).append(Span(int(ends[0]), int(ends[1])))
    return {name: _joined(each) for name, each in found.items()}


def _of(text: str) -> int:
    """Returns the number that a text is; -1 if it is none."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else -1


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for first, end in sorted(spans):
        if joined and first <= joined[-1].end:
            joined[-1] = Span(joined[-1].first, max(end, joined[-1].end))
        else:
            joined.append(Span(first, end))
    return tuple(joined)


def batch_number(left_out: Mapping[str, Sequence[Span]], name: str, use: int) -> int:
    """Returns the number of the batch that is used after `use` others of the dataset."""
    for first, end in left_out.get(name, ()):
        if use >= first:
            use += end - first
    return use


def same_until(
    before: Mapping[str, Sequence[Span]], now: Mapping[str, Sequence[Span]], uses: Mapping[str, int]
) -> bool:
    """Returns whether the first uses[name] batches of each dataset are the same."""
    for name, count in uses.items():
        end = batch_number(before, name, count - 1) + 1 if count else 0
        if _below(before.get(name, ()), end) != _below(now.get(name, ()), end):
            return False
    return True


def _below(spans: Sequence[Span], end: int) -> list[Span]:
    return [Span(span.first, min(span.end, end)) for span in spans if span.first < end]
