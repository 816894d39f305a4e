"""Writes the report of an evaluation into one directory.

results.json, predictions.jsonl, table.md, table.txt, predictions.html, gates.png, losses.png
benchmarks.png                of benchmarks, in the units of papers, with published results
few_shot.png, samples.png     of other tasks, such as those of the tiny world (values in 0..1)
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
from flamingo_jax.data.config import Background, ImageFit
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
    background: Background = "mean",
    video_frames: int = VIDEO_FRAMES,
    video_rate: float = VIDEO_RATE,
) -> list[Path]:
    """Writes the report, without pictures that have no data.

    Args:
        directory: created if it does not exist.
        rows: results; empty if all right answers are hidden (submissions to a server).
        samples: answers to show with their prompts; needs `image_size`.
        metrics_files: stage -> its metrics.jsonl, in the order of training; the gates are those of
            the last file that has some.
        chance: task -> value for guessed answers.
        image_size: side of the model's images in pixels.
        image_fit: how an image becomes a square.
        background: what is behind transparent pixels.
        video_frames: largest number of frames of a video that the model gets.
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
        settings |= {"background": background}
        settings |= {"video_frames": video_frames, "video_rate": video_rate}
        page = prediction_page.render(samples, rows, functools.partial(load_frames, **settings))
        written.append(paths.write_atomically(target / "predictions.html", page))
    benchmarks, others, _ = _split_by_kind(rows)
    drawn = [row for row in others if row.metric in curves.METRIC_TITLES]
    drawn_tasks = {row.task for row in drawn}
    chosen = sample_figure.choose([sample for sample in samples if sample.task in drawn_tasks])
    pictures: dict[str, Figure | None] = {}
    if benchmarks:
        pictures["benchmarks.png"] = benchmark_curves(benchmarks, chance or {})
    if drawn:
        pictures["few_shot.png"] = curves.few_shot_curves(drawn, chance or {})
    gates = [figure for log in logs.values() if (figure := curves.gate_curves(log)) is not None]
    pictures["gates.png"] = gates[-1] if gates else None
    pictures["losses.png"] = curves.loss_curves(logs)
    if image_size and chosen:
        pictures["samples.png"] = sample_figure.draw(
            chosen, image_size, image_fit=image_fit, background=background
        )
    figures = {name: figure for name, figure in pictures.items() if figure is not None}
    return written + [save(figure, target / name) for name, figure in figures.items()]


def text_table(rows: Sequence[Row]) -> str:
    """Returns the results for a terminal: tasks by shots, with all metrics in each cell.

    Benchmarks and comparisons have tables in the paper's manner.
    """
    benchmarks, others, comparisons = _split_by_kind(rows)
    tables = [_plain_text(others)] if others else []
    tables += [benchmark_table.text(benchmarks)] if benchmarks else []
    tables += [comparison_table.text(comparisons)] if comparisons else []
    return "\n".join(tables) or _NOTHING


def markdown_table(rows: Sequence[Row]) -> str:
    """Returns the results in Markdown."""
    benchmarks, others, comparisons = _split_by_kind(rows)
    tables = [_plain_markdown(others)] if others else []
    tables += [benchmark_table.markdown(benchmarks)] if benchmarks else []
    tables += [comparison_table.markdown(comparisons)] if comparisons else []
    return "\n".join(tables) or _NOTHING


def _split_by_kind(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Returns the rows of benchmarks, of other prompted tasks, and of embedding comparisons."""
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
    first = rows[0]
    return (
        f"{metrics}; n = {', '.join(map(str, counts))} per cell, seed {first.seed}; "
        f"{first.checkpoint} at step {first.step}"
    )


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture as PNG and returns its path.

    Raises:
        PathError: it cannot be written.
    """
    buffer = io.BytesIO()
    with curves.style():
        figure.savefig(buffer, format="png")
    return paths.write_atomically(path, buffer.getvalue())
