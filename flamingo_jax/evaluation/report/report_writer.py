"""The report of an evaluation.

Results.json, tables, curves, gates, losses, samples and predictions in one directory.

DIR/results.json  predictions.jsonl  table.md  table.txt  predictions.html  gates.png  losses.png
    benchmarks.png            of benchmarks, in the units of papers, beside what others published
    few_shot.png samples.png  of other tasks, such as those of the tiny world, whose values are 0..1
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.config import ImageFit
from flamingo_jax.evaluation.episode import Answer, Row
from flamingo_jax.evaluation.report import (
    benchmark_table,
    comparison_table,
    curves,
    prediction_page,
    sample_figure,
)
from flamingo_jax.evaluation.report.benchmark_curves import benchmark_curves
from flamingo_jax.evaluation.report.table import Table, TableRow
from flamingo_jax.evaluation.report.training_logs import read_log
from flamingo_jax.evaluation.report.units import is_benchmark, unit
from flamingo_jax.inference.visuals import VIDEO_FRAMES, VIDEO_RATE, load_frames

_NOTHING = "No results: the right answers are not known here.\n"


def write_report(
    directory: PathLike,
    rows: Sequence[Row],
    samples: Sequence[Answer] = (),
    metrics_files: Mapping[str, PathLike] | None = None,
    *,
    chance: Mapping[str, float] | None = None,
    image_size: int | None = None,
    image_fit: ImageFit = "pad",
    video_frames: int = VIDEO_FRAMES,
    video_rate: float = VIDEO_RATE,
) -> list[Path]:
    """Writes what there is to write: pictures without data are left out.

    Args:
        directory: made if it is not there.
        rows: results; none where all right answers are hidden (submissions to a server).
        samples: answers to show with their prompts;
            shown if `image_size` is given with them.
        metrics_files: metrics.jsonl of each stage, in the order of training; gates are read from
            the last that has some.
        chance: what guessing gives, by task.
        image_size: side of the model's images in pixels.
        image_fit: how an image becomes a square.
        video_frames: the most frames of a video that the model sees.
        video_rate: frames per second of a video.

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
    if samples and image_size:
        settings: dict[str, Any] = {"image_size": image_size, "image_fit": image_fit}
        settings |= {"video_frames": video_frames, "video_rate": video_rate}
        page = prediction_page.render(samples, rows, functools.partial(load_frames, **settings))
        written.append(paths.write_atomically(target / "predictions.html", page))
    benchmarks, others, _ = _parted(rows)
    drawn = [row for row in others if row.metric in curves.METRIC_TITLES]
    of_sheet = [sample for sample in samples if sample.task in {row.task for row in drawn}]
    gates = [figure for log in logs.values() if (figure := curves.gate_curves(log)) is not None]
    pictures = {
        "benchmarks.png": benchmark_curves(benchmarks, chance or {}) if benchmarks else None,
        "few_shot.png": curves.few_shot_curves(drawn, chance or {}) if drawn else None,
        "gates.png": gates[-1] if gates else None,
        "losses.png": curves.loss_curves(logs),
        "samples.png": sample_figure.sample_sheet(chosen, image_size, image_fit=image_fit)
        if image_size and (chosen := sample_figure.choose(of_sheet))
        else None,
    }
    return written + [
        _save(figure, target / name) for name, figure in pictures.items() if figure is not None
    ]


def text_table(rows: Sequence[Row]) -> str:
    """Results for a terminal: tasks by shots, each cell with the values of all metrics.

    Benchmarks and comparisons in the paper's manner.
    """
    benchmarks, others, comparisons = _parted(rows)
    tables = [_plain_text(others)] if others else []
    tables += [benchmark_table.text(benchmarks)] if benchmarks else []
    tables += [comparison_table.text(comparisons)] if comparisons else []
    return "\n".join(tables) or _NOTHING


def markdown_table(rows: Sequence[Row]) -> str:
    """The same in Markdown."""
    benchmarks, others, comparisons = _parted(rows)
    tables = [_plain_markdown(others)] if others else []
    tables += [benchmark_table.markdown(benchmarks)] if benchmarks else []
    tables += [comparison_table.markdown(comparisons)] if comparisons else []
    return "\n".join(tables) or _NOTHING


def _parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Rows of benchmarks that were prompted for, the other prompted ones, and comparisons of embeddings."""
    comparisons = [row for row in rows if comparison_table.is_comparison(row)]
    prompted = [row for row in rows if not comparison_table.is_comparison(row)]
    metrics: dict[str, list[str]] = {}
    for row in prompted:
        metrics.setdefault(row.task, []).append(row.metric)
    benchmarks = {task for task, names in metrics.items() if is_benchmark(task, names)}
    others = [row for row in prompted if row.task not in benchmarks]
    return [row for row in prompted if row.task in benchmarks], others, comparisons


def _plain_text(rows: Sequence[Row]) -> str:
    head, *lines = _table(rows).text(gap=2)
    return "\n".join([_legend(rows), "", head, "-" * len(head), *lines]) + "\n"


def _plain_markdown(rows: Sequence[Row]) -> str:
    return "\n".join([_legend(rows), "", *_table(rows).markdown()]) + "\n"


def _table(rows: Sequence[Row]) -> Table:
    """Tasks by numbers of shots, each cell with the values of all metrics."""
    shots = sorted({row.shots for row in rows})
    metrics = list(dict.fromkeys(row.metric for row in rows))
    values = {(row.task, row.shots, row.metric): row.value for row in rows}

    def cell(task: str, number: int) -> str:
        return " / ".join(
            unit(task, metric).text(values.get((task, number, metric))) for metric in metrics
        )

    lines = [
        TableRow((task, *(cell(task, number) for number in shots)))
        for task in dict.fromkeys(row.task for row in rows)
    ]
    return Table(("task \\ shots", *map(str, shots)), tuple(lines))


def _legend(rows: Sequence[Row]) -> str:
    metrics = " / ".join(dict.fromkeys(unit(row.task, row.metric).title for row in rows))
    counts = sorted({row.n for row in rows})
    return f"{metrics}; n = {', '.join(map(str, counts))} per cell, seed {rows[0].seed}; {rows[0].checkpoint} at step {rows[0].step}"


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    with curves.style():
        figure.savefig(buffer, format="png")
    return paths.write_atomically(path, buffer.getvalue())
