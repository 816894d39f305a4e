"""What models of several sizes learn from a prompt, in the tiny world (launch/model_sizes.sh).

Figure 2 of the paper, right, in small: the mean over the tasks by the number of examples, a line
for each size. The sizes have the same data, and the same vision encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.report import curves
from flamingo_jax.evaluation.report.joined_runs import JoinedRun, is_plain
from flamingo_jax.evaluation.report.joined_table import JoinedTable
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow

TASKS = ("format", "bind2", "bind4", "format_held_out", "bind2_held_out", "questions")
METRIC = "exact_match"
BASE = "base"  # a run of which nothing says the size

Values = Mapping[str, Mapping[int, float]]  # task -> examples -> value


def model_sizes(runs: Sequence[JoinedRun]) -> tuple[JoinedTable, Mapping[str, Figure]]:
    """Returns the table and the picture of the runs.

    Args:
        runs: runs of the sizes of configs/tiny.py, with results of its tasks.

    Raises:
        ConfigError: the runs have no task in common.
    """
    notes = [problem for run in runs for problem in run.problems]
    found = {run.name: _values(run) for run in runs if run.results}
    runs = [run for run in runs if run.results]
    tasks = [task for task in TASKS if runs and all(task in found[run.name] for run in runs)]
    if not tasks:
        raise ConfigError(
            f"The runs have no task in common; expected results of {', '.join(TASKS)}. Run "
            f"launch/model_sizes.sh, or give the outputs of evaluations. {' '.join(notes)}".strip()
        )
    for run in runs:
        if others := [task for task in found[run.name] if task not in tasks]:
            notes.append(f"{run.name}: {', '.join(others)} left out, which not all runs have.")
    shots = sorted({number for run in runs for task in tasks for number in found[run.name][task]})
    groups = _groups(runs)
    means = {
        label: {
            number: mean
            for number in shots
            if (mean := _mean([found[run.name] for run in members], tasks, number)) is not None
        }
        for label, members in groups.items()
    }
    rows = []
    for label, members in groups.items():
        each = [_mean([found[run.name] for run in members], [task], shots[-1]) for task in tasks]
        cells = map(_text, (*each, *(means[label].get(number) for number in shots)))
        seeds = len({run.results[0].seed for run in members})
        rows.append(TableRow((label, _weights(members), *cells, str(seeds)), is_bold=True))
    head = (
        "",
        "weights",
        *(f"{task.replace('_', ' ')}, {shots[-1]} shots" for task in tasks),
        *(f"mean, {number} shots" for number in shots),
        "seeds",
    )
    about = f"Exact match with {shots[-1]} examples, and means over the tasks: {', '.join(tasks)}."
    title = "Sizes of the tiny Flamingo"
    made = JoinedTable("model_sizes", title, about, Table(head, tuple(rows)), tuple(notes))
    return made, {"model_sizes.png": _draw(means, groups, shots, len(tasks))}


def _values(run: JoinedRun) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    for row in run.results:
        if row.task in TASKS and row.metric == METRIC and is_plain(row):
            values.setdefault(row.task, {})[row.shots] = row.value
    return values


def _groups(runs: Sequence[JoinedRun]) -> dict[str, list[JoinedRun]]:
    """Returns {size: its runs}, the fewest weights first; runs of a size differ in the seed."""
    groups: dict[str, list[JoinedRun]] = {}
    for run in sorted(runs, key=lambda run: run.parameters or 0):
        groups.setdefault(run.row or BASE, []).append(run)
    return groups


def _mean(values: Sequence[Values], tasks: Sequence[str], shots: int) -> float | None:
    """Returns the mean over the tasks and the seeds; None if one was not measured."""
    found = [each[task].get(shots) for each in values for task in tasks]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if len(known) == len(found) else None


def _weights(runs: Sequence[JoinedRun]) -> str:
    number = runs[0].parameters
    return MISSING if number is None else f"{number:,}"


def _text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _draw(
    means: Mapping[str, Mapping[int, float]],
    groups: Mapping[str, Sequence[JoinedRun]],
    shots: Sequence[int],
    count: int,
) -> Figure:
    colours = {
        label: curves.COLOURS[place % len(curves.COLOURS)] for place, label in enumerate(means)
    }
    with curves.style():
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")  # inches
        axis = figure.subplots()
        axis.set_ylim(0, 1)
        curves.lines_by_shots(axis, means, shots, colours, decimals=2)
        axis.set_ylabel("exact match")
        axis.set_title(f"mean over {count} task{'s' if count > 1 else ''}")
        curves.headline(figure, "Sizes of the tiny Flamingo")
        handles, labels = axis.get_legend_handles_labels()
        named = [f"{label}, {_weights(groups[label])} weights" for label in labels]
        figure.legend(handles, named, loc="outside lower left", ncols=len(labels), fontsize=9)
    return figure
