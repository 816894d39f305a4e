"""The report of an evaluation: results.json, tables, curves, gates, losses and a sheet of samples in one directory.

DIR/results.json  predictions.jsonl  table.md  table.txt  few_shot.png  gates.png  losses.png  samples.png
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation import plots, sheet
from flamingo_jax.evaluation.logs import read_log
from flamingo_jax.evaluation.runner import Row, Sample


def write_report(
    directory: PathLike,
    rows: Sequence[Row],
    samples: Sequence[Sample] = (),
    metrics_files: Mapping[str, PathLike] | None = None,
    *,
    chance: Mapping[str, float] | None = None,
    image_size: int | None = None,
) -> list[Path]:
    """Writes what there is to write: pictures without data are left out.

    Args:
        directory: made if it is not there.
        rows: results.
        samples: episodes with answers, for the sheet; `image_size` must be given with them.
        metrics_files: metrics.jsonl of each stage, in the order of training; gates are read from the last that has some.
        chance: what guessing gives, by task.
        image_size: side of the model's images in pixels.

    Returns:
        The files written.

    Raises:
        PathError: the directory cannot be written.
    """
    target = paths.make_directory(directory)
    logs = {stage: read_log(path) for stage, path in (metrics_files or {}).items()}
    written = [
        paths.write_json(target / "results.json", [dataclasses.asdict(row) for row in rows]),
        paths.write_atomically(target / "table.md", markdown_table(rows)),
        paths.write_atomically(target / "table.txt", text_table(rows)),
    ]
    gates = [figure for log in logs.values() if (figure := plots.gate_curves(log)) is not None]
    pictures = {
        "few_shot.png": plots.few_shot_curves(rows, chance or {}),
        "gates.png": gates[-1] if gates else None,
        "losses.png": plots.loss_curves(logs),
        "samples.png": sheet.sample_sheet(chosen, image_size)
        if image_size and (chosen := sheet.choose(samples))
        else None,
    }
    return written + [_save(figure, target / name) for name, figure in pictures.items() if figure is not None]


def text_table(rows: Sequence[Row]) -> str:
    """Tasks by shots, for a terminal: each cell holds the values of all metrics."""
    head, body = _table(rows)
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    ]
    return "\n".join([_legend(rows), "", lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    head, body = _table(rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join([_legend(rows), "", *("| " + " | ".join(line) + " |" for line in [head, rule, *body])]) + "\n"


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    shots = sorted({row.shots for row in rows})
    metrics = list(dict.fromkeys(row.metric for row in rows))
    values = {(row.task, row.shots, row.metric): row.value for row in rows}
    head = ["task \\ shots", *map(str, shots)]
    body = []
    for task in dict.fromkeys(row.task for row in rows):
        cells = [[_number(values.get((task, number, metric))) for metric in metrics] for number in shots]
        body.append([task, *(" / ".join(cell) for cell in cells)])
    return head, body


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _legend(rows: Sequence[Row]) -> str:
    metrics = " / ".join(dict.fromkeys(row.metric.replace("_", " ") for row in rows))
    counts = sorted({row.n for row in rows})
    return f"{metrics}; n = {', '.join(map(str, counts))} per cell, seed {rows[0].seed}; {rows[0].checkpoint} at step {rows[0].step}"


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    with plots.style():
        figure.savefig(buffer, format="png")
    return paths.write_atomically(path, buffer.getvalue())
