"""The closest pairs of a deduplication side by side, as one HTML file to look through: is the threshold right?"""

from __future__ import annotations

from collections.abc import Iterable

from flamingo_jax.core.html_page import document, embedded, escape
from flamingo_jax.data.images import read
from flamingo_jax.data.schema import CorruptRecord

MAX_PAIRS = 200  # shown; the file stays at a few MB
_SIDE = 160  # pixels of an image as shown

_STYLE = """
table { border-collapse: collapse; } td, th { padding: 6px 14px; border-bottom: 1px solid #dfe4e8; text-align: left; }
img { display: block; } td { overflow-wrap: anywhere; }
""".strip()


def page(pairs: Iterable[tuple[float, str, bytes, str, bytes]], total: int, measure: str) -> str:
    """Returns the page.

    Args:
      pairs: (score, name of the training image, its bytes, name of the evaluation image, its bytes); b"" shows the name alone.
      total: number of all pairs, shown or not.
      measure: what the scores are.
    """
    rows = [
        f"<tr><td>{score:g}</td><td>{_cell(training, mine)}</td><td>{_cell(evaluation, other)}</td></tr>"
        for score, training, mine, evaluation, other in pairs
    ]
    body = "\n".join(["<table><tr><th>score</th><th>training</th><th>evaluation</th></tr>", *rows, "</table>"])
    made = f"{len(rows)} of {total} pairs, the closest first. Score: {measure}."
    return document("Training images that are in an evaluation set", made, {}, body, style=_STYLE, images="data:")


def _cell(name: str, encoded: bytes) -> str:
    try:
        square = read.decode(encoded, _SIDE)
    except CorruptRecord:
        return escape(name)
    return f'<img width="{_SIDE}" height="{_SIDE}" alt="" src="{embedded(square)}">{escape(name)}'
