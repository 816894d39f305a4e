"""One HTML file with the closest pairs of a deduplication side by side.

It shows whether the threshold is right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from flamingo_jax.core.html_page import embedded, template
from flamingo_jax.data.images import read
from flamingo_jax.data.schema import CorruptRecord

MAX_PAIRS = 200  # shown; the file stays at a few MB
_SIDE = 160  # pixels of an image as shown


class _Shown(NamedTuple):
    name: str
    image: str  # "" = no image to show


def page(pairs: Iterable[tuple[float, str, bytes, str, bytes]], total: int, measure: str) -> str:
    """Returns the page.

    Args:
      pairs: (score, name of the training image, its bytes, name of the evaluation image, its
        bytes); for b"" only the name is shown.
      total: number of all pairs, shown or not.
      measure: what the scores are.
    """
    shown = [
        (score, _shown(training, mine), _shown(evaluation, other))
        for score, training, mine, evaluation, other in pairs
    ]
    return template(__file__).render(
        title="Training images that are in an evaluation set",
        made=f"{len(shown)} of {total} pairs, the closest first. Score: {measure}.",
        facts={},
        pairs=shown,
        side=_SIDE,
    )


def _shown(name: str, encoded: bytes) -> _Shown:
    try:
        return _Shown(name, embedded(read.decode(encoded, _SIDE)))
    except CorruptRecord:
        return _Shown(name, "")
