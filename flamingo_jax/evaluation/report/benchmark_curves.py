"""Curves of the paper's benchmarks over the number of support examples.

Published curves are faint, in the manner of the paper's Figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report.benchmark_table import (
    main_metric,
    own_setting,
    published,
    tasks_of,
    title_of,
)
from flamingo_jax.evaluation.report.curves import COLOURS, INK, headline, style
from flamingo_jax.evaluation.report.units import unit

# The published curves that are drawn, of Flamingo and the largest of the other models:
# model -> (colour, line style).
PUBLISHED: Mapping[str, tuple[str, str]] = {
    "Flamingo-3B": ("#c6d0d9", "-"),
    "Flamingo-9B": ("#a3b2bf", "-"),
    "Flamingo-80B": ("#74889a", "-"),
    "OpenFlamingo-9B": ("#9fc3a6", "--"),
    "IDEFICS-80B": ("#b3a6cc", "--"),
}
_OWN = (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[4])
_GUESSING = "guessing"
_COLUMNS = 4
_PANEL, _LEGEND_ENTRY, _HEADLINE = (3.3, 2.8), (1.75, 0.24), 0.8  # inches


def benchmark_curves(rows: Sequence[Row], chance: Mapping[str, float]) -> Figure:
    """Draws a panel per benchmark: the metric that papers report over the number of shots.

    Args:
        rows: results on benchmarks; at least one.
        chance: task -> value for guessed answers, in the metric's own unit.
    """
    tasks = tasks_of(rows)
    columns = min(_COLUMNS, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    settings = list(dict.fromkeys(own_setting(row) for row in rows))
    colours = {setting: _OWN[number % len(_OWN)] for number, setting in enumerate(settings)}
    with style():
        width = max(columns * _PANEL[0], 7.4)
        figure = Figure(layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            _panel(axis, [row for row in rows if row.task == task], colours, chance.get(task))
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        order = (*map(_own_label, settings), *PUBLISHED, _GUESSING)
        labels = [label for label in order if label in handles]
        entries = int(width / _LEGEND_ENTRY[0])
        legend_height = _LEGEND_ENTRY[1] * math.ceil(len(labels) / entries)
        figure.set_size_inches(width, lines * _PANEL[1] + legend_height + _HEADLINE)
        headline(figure, "Benchmarks over the number of support examples")
        figure.legend(
            [handles[label] for label in labels],
            labels,
            loc="outside lower left",
            ncols=entries,
            fontsize=9,
            handlelength=1.8,
            columnspacing=1.4,
        )
    return figure


def _panel(axis: Any, rows: Sequence[Row], colours: Mapping[str, str], guess: float | None) -> None:
    """Draws one benchmark; the numbers of shots are at equal distances."""
    task, metric = rows[0].task, main_metric(rows)
    rows = [row for row in rows if row.metric == metric]
    shots = sorted({row.shots for row in rows})
    shown = unit(task, metric)
    for series in published(rows):
        if series.model in PUBLISHED and not series.detail and series.selection == "random":
            points = [
                (place, series.values[number])
                for place, number in enumerate(shots)
                if number in series.values
            ]
            colour, line = PUBLISHED[series.model]
            if points:
                look = {"color": colour, "linewidth": 1.4, "marker": "o", "markersize": 2.8}
                axis.plot(*zip(*points, strict=True), line, label=series.model, zorder=2, **look)
    for setting in dict.fromkeys(own_setting(row) for row in rows):
        own = {row.shots: row.value * shown.factor for row in rows if own_setting(row) == setting}
        points = [(place, own[number]) for place, number in enumerate(shots) if number in own]
        colour, label = colours[setting], _own_label(setting)
        look = {"color": colour, "markersize": 5, "zorder": 4}
        axis.plot(*zip(*points, strict=True), "-o", label=label, **look)
        font = {"size": 8.5, "weight": "bold", "color": colour, "ha": "center", "va": "bottom"}
        above = {"xytext": (0, 5), "textcoords": "offset points", "zorder": 5}
        for place, value in points:
            note = axis.annotate(f"{value:.{shown.decimals}f}", (place, value), **above, **font)
            note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    if guess is not None:
        dotted = {"color": INK, "linewidth": 0.9, "dashes": (1, 2), "zorder": 1}
        axis.axhline(guess * shown.factor, label=_GUESSING, **dotted)
    axis.set_title(title_of(task), pad=16)
    axis.text(0, 1.02, shown.title, transform=axis.transAxes, size=8.5, color=INK, va="bottom")
    axis.set_xticks(range(len(shots)), [str(number) for number in shots])
    axis.set_xlim(-0.35, max(len(shots) - 0.65, 0.35))
    axis.margins(y=0.14)
    axis.grid(axis="x", visible=False)
    axis.tick_params(length=0, labelsize=9)


def _own_label(setting: str) -> str:
    return f"this run, {setting}" if setting else "this run"
