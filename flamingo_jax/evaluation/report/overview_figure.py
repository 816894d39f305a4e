"""The overview of the results (paper, Figure 2).

Left: each task in percent of the fine-tuned state of the art, with 32 examples. Right: the mean
over the tasks, by size of the model and number of examples. RareAct, the 16th task, has no
fine-tuned result. VisDial has at most 16 examples, which is what fits into the LM's context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flamingo_jax.evaluation.benchmarks.benchmark import SHOTS
from flamingo_jax.evaluation.registry import PAPER_BENCHMARKS
from flamingo_jax.evaluation.report.benchmark_curves import PUBLISHED
from flamingo_jax.evaluation.report.benchmark_table import own_setting
from flamingo_jax.evaluation.report.curves import COLOURS, INK, headline, lines_by_shots, style
from flamingo_jax.evaluation.report.joined_runs import JoinedRun
from flamingo_jax.evaluation.report.joined_table import JoinedTable
from flamingo_jax.evaluation.report.published import benchmark_of, series
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow
from flamingo_jax.evaluation.report.units import unit

MODELS = ("Flamingo-3B", "Flamingo-9B", "Flamingo-80B")
LARGEST = "Flamingo-80B"
BEFORE = "before Flamingo, few or no examples"
# The tasks of Table 1 that have a fine-tuned state of the art.
TASKS = tuple(
    name for name, each in PAPER_BENCHMARKS.items() if each.table == 1 and each.fine_tuned_sota
)
_OWN = (COLOURS[0], COLOURS[1], COLOURS[3], COLOURS[4], COLOURS[5])
_NOTE = "in % of the fine-tuned state of the art of 2022"
_BAR = 0.36  # of the distance of two tasks
_LEGEND, _LINE = 160, 10  # characters: the width of the legend, and of the line before a label

Shares = Mapping[str, Mapping[int, float]]  # task -> {shots: percent of the state of the art}


@dataclasses.dataclass(frozen=True)
class Overview:
    """The numbers of the picture.

    Attributes:
        tasks: those that all models have.
        models: label -> its shares; published ones first.
        before: task -> share of the best model with few or no examples before Flamingo.
        notes: what is left out, a line each.
    """

    tasks: tuple[str, ...]
    models: Mapping[str, Shares]
    before: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def at(self, model: str, task: str, shots: int) -> float | None:
        """Returns a share at this number of examples; None if it was not measured.

        VisDial with more than 16 examples is VisDial with 16.
        """
        return self.models[model][task].get(_last(task, shots))

    def mean(self, model: str, shots: int) -> float | None:
        """Returns the mean over the tasks; None if one was not measured."""
        found = [self.at(model, task, shots) for task in self.tasks]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known and len(known) == len(found) else None

    def table(self) -> JoinedTable:
        """Returns the numbers as a table: the tasks at 32 examples, then the means."""
        rows = []
        for model in self.models:
            at_most = [self.at(model, task, SHOTS[-1]) for task in self.tasks]
            means = [self.mean(model, shots) for shots in SHOTS]
            cells = [MISSING if value is None else f"{value:.1f}" for value in (*at_most, *means)]
            rows.append(TableRow((model, *cells), is_bold=model not in MODELS))
        titles = (PAPER_BENCHMARKS[task].title for task in self.tasks)
        head = ("", *titles, *(f"mean, {shots} shots" for shots in SHOTS))
        about = f"Results with {SHOTS[-1]} examples, and means over the tasks, {_NOTE}."
        notes = (*_SOURCES, *self.notes)
        return JoinedTable(
            "figure_2", "Overview (Figure 2)", about, Table(head, tuple(rows)), notes
        )


_SOURCES = (
    "Published: Flamingo, arXiv 2204.14198 v2, Table 1. RareAct has no fine-tuned result.",
    "VisDial has at most 16 examples.",
)


def overview(runs: Sequence[JoinedRun]) -> Overview:
    """Returns the numbers of the published models and of the runs, on the tasks that all have.

    Args:
        runs: the runs; without runs, all 15 tasks.
    """
    notes = [problem for run in runs for problem in run.problems]
    own: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        found = _shares(run)
        own |= {label: shares for label, shares in found.items() if shares}
        if run.results and not found:
            notes.append(f"{run.name}: no result of a task of Table 1.")
    tasks = tuple(task for task in TASKS if all(task in shares for shares in own.values()))
    if not tasks:
        notes.append("The runs have no task in common: the published models are shown alone.")
        own, tasks = {}, TASKS
    for label, shares in own.items():
        if others := [PAPER_BENCHMARKS[task].title for task in shares if task not in tasks]:
            notes.append(f"{label}: {', '.join(others)} left out, which not all runs have.")
        if lacking := [task for task in tasks if _last(task) not in shares[task]]:
            titles = ", ".join(PAPER_BENCHMARKS[task].title for task in lacking)
            notes.append(f"{label}: not measured with {SHOTS[-1]} examples: {titles}.")
    published: dict[str, Shares] = {
        model: {task: _of_sota(task, _published(task, model)) for task in TASKS} for model in MODELS
    }
    before = {
        task: _of_sota(task, {0: each.zero_few_shot_sota})[0]
        for task in tasks
        if (each := PAPER_BENCHMARKS[task]).zero_few_shot_sota
    }
    return Overview(tasks, {**published, **own}, before, tuple(dict.fromkeys(notes)))


def draw(numbers: Overview) -> Figure:
    """Draws both panels; the tasks are in the order of the largest model's shares."""
    final = SHOTS[-1]
    order = sorted(numbers.tasks, key=lambda task: numbers.at(LARGEST, task, final) or 0.0)
    own = [model for model in numbers.models if model not in MODELS]
    colours = {model: _OWN[i % len(_OWN)] for i, model in enumerate(own)}
    with style():
        size = (11.5, max(4.2, 0.33 * len(order) + 2.0))  # inches
        figure = Figure(figsize=size, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _tasks(left, numbers, order, colours)
        _means(right, numbers, colours)
        headline(figure, "Results, " + _NOTE)
        handles: dict[str, Any] = {}
        for axis in (left, right):
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        labels = [label for label in (*numbers.models, BEFORE) if label in handles]
        lines = [handles[label] for label in labels]
        columns = _columns(labels)
        figure.legend(lines, labels, loc="outside lower left", ncols=columns, fontsize=9)
    return figure


def _columns(labels: Sequence[str]) -> int:
    """Returns the largest number of columns, up to 5, in which the legend is inside the figure."""
    for columns in range(5, 1, -1):
        parts = np.array_split(labels, min(columns, len(labels)))  # as matplotlib fills columns
        if sum(_LINE + max(map(len, part)) for part in parts) <= _LEGEND:
            return columns
    return 1


def _tasks(axis: Any, numbers: Overview, order: Sequence[str], colours: Mapping[str, str]) -> None:
    final, places = SHOTS[-1], range(len(order))
    values = [numbers.at(LARGEST, task, final) or 0.0 for task in order]
    axis.barh(places, values, _BAR * 1.6, color=PUBLISHED[LARGEST][0], label=LARGEST, alpha=0.75)
    for place, share in zip(places, values, strict=True):
        font = {"size": 8, "color": "white", "va": "center", "weight": "bold"}
        axis.annotate(f"{share:.0f}", (0, place), (4, 0), textcoords="offset points", **font)
    known = [
        (numbers.before[task], place) for place, task in enumerate(order) if task in numbers.before
    ]
    if known:
        look = {"color": INK, "linestyle": "none", "zorder": 3}
        axis.plot(*zip(*known, strict=True), "|", label=BEFORE, markersize=11, **look)
    for model, colour in colours.items():
        points = [
            (value, place)
            for place, task in enumerate(order)
            if (value := numbers.at(model, task, final)) is not None
        ]
        if points:
            dots = {"color": colour, "linestyle": "none", "markersize": 6.5, "zorder": 4}
            axis.plot(*zip(*points, strict=True), "o", label=model, **dots)
    axis.axvline(100, color=INK, linewidth=1, dashes=(4, 2), zorder=2)
    axis.set_yticks(places, [PAPER_BENCHMARKS[task].title for task in order])
    axis.set_title(f"each task, {final} examples")
    axis.grid(axis="y", visible=False)
    axis.set_xlim(left=0)
    axis.tick_params(length=0, labelsize=9)


def _means(axis: Any, numbers: Overview, colours: Mapping[str, str]) -> None:
    means = {
        model: {shots: mean for shots in SHOTS if (mean := numbers.mean(model, shots)) is not None}
        for model in numbers.models
    }
    drawn = {model: colours.get(model) or PUBLISHED[model][0] for model in means}
    readable = {model: colours.get(model) or PUBLISHED[LARGEST][0] for model in means}  # not pale
    lines_by_shots(axis, means, SHOTS, drawn, of_values=readable)
    count = len(numbers.tasks)
    axis.set_title(
        f"mean over {count} tasks" if count > 1 else PAPER_BENCHMARKS[numbers.tasks[0]].title
    )


def _shares(run: JoinedRun) -> dict[str, dict[str, dict[int, float]]]:
    """Returns {label of a setting: shares} of a run; settings are of `own_setting`."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in sorted(run.results, key=lambda row: row.task in TASKS):  # the paper's split counts
        task = benchmark_of(row.task)
        if task in TASKS and row.metric == PAPER_BENCHMARKS[task].metric.name:
            label = ", ".join(filter(None, (run.name, own_setting(row))))
            value = row.value * unit(row.task, row.metric).factor
            shares = found.setdefault(label, {}).setdefault(task, {})
            shares |= _of_sota(task, {row.shots: value})
    return found


def _published(task: str, model: str) -> Mapping[int, float]:
    for each in series(task):
        if (each.model, each.selection, each.detail) == (model, "random", ""):
            return each.values
    return {}


def _last(task: str, shots: int = SHOTS[-1]) -> int:
    """Returns a number of examples, and at most what fits into the LM's context."""
    return min(shots, PAPER_BENCHMARKS[task].max_shots)


def _of_sota(task: str, values: Mapping[int, float | None]) -> dict[int, float]:
    best = PAPER_BENCHMARKS[task].fine_tuned_sota
    assert best is not None
    return {shots: 100 * value / best for shots, value in values.items() if value is not None}
