"""Results of zero-shot classification and retrieval, with the results of others.

Each task is a section, in the manner of the paper's Table 9:

Flickr30k retrieval: 1000 images of Karpathy test; paper: the 1,000 of Karpathy's test split
                             i2t R@1     i2t R@5    i2t R@10     t2i R@1     t2i R@5    t2i R@10
  this run                      88.0        98.7        99.4        68.7        90.6        95.2
  contrastive NFNet-F6          89.3        98.8        99.7        79.5        95.3        97.9
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flamingo_jax.evaluation.comparison import COSINE
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report.published import (
    CONTRASTIVE_SOURCE,
    contrastive,
    contrastive_benchmark,
)
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow

# Names in tables of the tasks of the demo's world.
_WORLD = {
    "world_retrieval": "Retrieval in the demo's world, within batches of 64",
    "world_zero_shot": "Objects of the demo's world, zero-shot",
}
_COLUMNS = {"top1": "top-1", "top5": "top-5", "top1_top5": "their mean"}
_RETRIEVAL = "i2t, t2i: image to text and text to image; R@k: a right one is among the first k."
_PART = "Fewer images than the paper's make retrieval easier: such numbers are not comparable."


@dataclasses.dataclass(frozen=True)
class ComparisonSection:
    """One task.

    Attributes:
        about: name of the task, number of images, and the paper's images.
        table: models by metrics, in percent; this run first.
    """

    about: str
    table: Table


def is_comparison(row: Row) -> bool:
    """Returns True if the row is of a task that compares embeddings."""
    return row.decoding == COSINE


def sections(rows: Sequence[Row]) -> list[ComparisonSection]:
    """Returns a section per task, in the order of the run.

    Args:
        rows: results of comparisons.
    """
    return [
        _section([row for row in rows if row.task == task])
        for task in dict.fromkeys(row.task for row in rows)
    ]


def text(rows: Sequence[Row]) -> str:
    """Returns the table for a terminal."""
    lines = [_head(rows), ""]
    for section in sections(rows):
        label_width = section.table.widths()[0] + 2
        table = section.table.text(label_width=label_width, column_width=12, indent=2)
        lines += [section.about, *table, ""]
    return "\n".join([*lines, *_notes(rows)]) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown."""
    lines = [_head(rows), ""]
    for section in sections(rows):
        lines += [section.about, "", *section.table.markdown(), ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(rows))]) + "\n"


def _section(rows: Sequence[Row]) -> ComparisonSection:
    first, metrics = rows[0], [row.metric for row in rows]
    title, paper, shown = _WORLD.get(first.task, first.task), "", "images"
    benchmark = contrastive_benchmark(first.task)
    if benchmark and (task := benchmark.contrastive):
        title = f"{benchmark.title}{' retrieval' if task.kind == 'retrieval' else ', zero-shot'}"
        paper = task.queries
        shown = "clips" if benchmark.visual == "video" else "images"
    split = f" of {benchmark.split('test')}" if benchmark else ""
    about = f"{title}: {first.n} {shown}{split}"
    about += f", {first.ensemble} templates per class" if first.ensemble > 1 else ""
    about += f"; paper: {paper}" if paper else ""
    values = {"this run": {row.metric: 100 * row.value for row in rows}, **contrastive(first.task)}
    lines = [
        (model, *(f"{found[name]:.1f}" if name in found else MISSING for name in metrics))
        for model, found in values.items()
    ]
    head = ("", *map(_column, metrics))
    return ComparisonSection(about, Table(head, tuple(map(TableRow, lines))))


def _column(metric: str) -> str:
    if metric in _COLUMNS:
        return _COLUMNS[metric]
    way, _, k = metric.partition("_recall_at_")
    return f"{'i2t' if way == 'image_to_text' else 't2i'} R@{k}" if k else metric.replace("_", " ")


def _head(rows: Sequence[Row]) -> str:
    first = rows[0]
    return (
        f"This run: {first.checkpoint} at step {first.step}, seed {first.seed}; "
        "cosines of embeddings, values in percent."
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [_RETRIEVAL] if any("_recall_at_" in row.metric for row in rows) else []
    published = {row.task for row in rows if contrastive(row.task)}
    notes += [f"Published: {CONTRASTIVE_SOURCE}."] if published else []
    return notes + ([_PART] if any(task.endswith("_retrieval") for task in published) else [])
