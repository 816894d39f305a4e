"""The closest pairs of a deduplication side by side, as one HTML file to look through: is the threshold right?"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

from PIL import Image

from flamingo_jax.data import images
from flamingo_jax.data.schema import CorruptRecord

MAX_PAIRS = 200  # shown; the file stays at a few MB
_SIDE = 160  # pixels of an image as shown

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Candidates</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 24px; max-width: 1000px; color: #22303c; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 6px 14px; border-bottom: 1px solid #dfe4e8; text-align: left; }}
img {{ display: block; }} td {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>Training images that are in an evaluation set</h1>
<p>{shown} of {total} pairs, the closest first. Score: {measure}.</p>
<table><tr><th>score</th><th>training</th><th>evaluation</th></tr>
{rows}
</table></body></html>
"""


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
    return _PAGE.format(shown=len(rows), total=total, measure=html.escape(measure), rows="\n".join(rows))


def _cell(name: str, encoded: bytes) -> str:
    name = html.escape(name.encode(errors="backslashreplace").decode())  # file names need not be Unicode
    try:
        square = Image.fromarray(images.decode(encoded, _SIDE))
    except CorruptRecord:
        return name
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{_SIDE}" height="{_SIDE}" alt="" src="data:image/jpeg;base64,{data}">{name}'
