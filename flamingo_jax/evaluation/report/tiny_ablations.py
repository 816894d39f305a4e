"""What each ablation changes in the tiny world, and in the paper (launch/ablations.sh).

A row is a name of configs/ablations/tiny.py. Its difference from the base in the overall score is
compared with that of Table 3 or 10 of the paper, by sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.report import curves
from flamingo_jax.evaluation.report.differences import BASE, Difference, differences
from flamingo_jax.evaluation.report.joined_runs import JoinedRun, is_plain
from flamingo_jax.evaluation.report.joined_table import JoinedTable
from flamingo_jax.evaluation.report.published_ablations import ABLATIONS, SHOTS
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow

TASKS = ("format", "bind2", "bind4", "format_held_out", "bind2_held_out")
OVERALL = "overall"
COLUMNS = (*TASKS, OVERALL)
CONTROLS = ("format_shuffled", "bind2_shuffled")  # ranking: 1/3 and 1/2 by chance
# Rows with other names in configs/ablations/flamingo_3b.py.
_IN_THE_PAPER = {"no_pages": "no_m3w", "small_vision": "nfnet_f0"}
_ABOUT = (
    f"Exact match at {SHOTS} examples: of the base, and of each row minus the base of the same "
    "seed, +- one standard error."
)
_NOTES = (
    "The standard error is one for all rows of a column, from how much their differences change "
    "between the seeds. ~: less than two standard errors from 0.",
    "overall: the mean of the five tasks. paper: the difference in the overall score of Table 3 "
    "or 10, of five benchmarks in percent of the state of the art.",
    "controls: right answer ranked first where the labels are shuffled (format / bind2); chance "
    "is 0.33 and 0.50.",
)

Values = Mapping[str, float]  # column or control -> value
Results = Mapping[str, Mapping[int, Values]]  # row -> seed -> values


def tiny_ablations(runs: Sequence[JoinedRun]) -> tuple[JoinedTable, Mapping[str, Figure]]:
    """Returns the table and the picture of the runs.

    Args:
        runs: runs of configs/ablations/tiny.py, with the results of launch/ablations.sh.

    Raises:
        ConfigError: no run of the base has results.
    """
    results, notes = _collect(runs)
    if BASE not in results:
        raise ConfigError(
            "No run of the row base has results, and differences are from it. Run "
            "launch/ablations.sh, or give base=DIR of its evaluation. " + " ".join(notes)
        )
    found = differences(results, COLUMNS)
    lines = [_base(results[BASE])]
    lines += [_row(row, each, results[row]) for row, each in found.items()]
    signs = [
        each[OVERALL].mean * paper > 0
        for row, each in found.items()
        if (paper := published(row)) is not None
    ]
    summary = f"{sum(signs)} of {len(signs)} rows have the paper's sign in the overall score."
    head = ("", *(name.replace("_", " ") for name in COLUMNS), "paper", "sign", "controls", "seeds")
    table = Table(head, tuple(lines))
    title = "Ablations of the tiny Flamingo"
    made = JoinedTable("tiny_ablations", title, _ABOUT, table, (summary, *_NOTES, *notes))
    return made, {"tiny_ablations.png": _draw(found)} if found else {}


def counterpart(row: str) -> str:
    """Returns the name of a row in configs/ablations/flamingo_3b.py."""
    return _IN_THE_PAPER.get(row, row)


def published(row: str) -> float | None:
    """Returns a row's overall score minus that of the base, in the paper; None if it has none."""
    ablation = ABLATIONS.get(counterpart(row))
    return None if ablation is None else ablation.overall - ABLATIONS[BASE].overall


def _collect(runs: Sequence[JoinedRun]) -> tuple[dict[str, dict[int, Values]], list[str]]:
    """Returns the values of the runs that have all tasks, and a note on each other run.

    Rows are in the order of the paper's tables.
    """
    found: dict[str, dict[int, Values]] = {}
    asked: dict[tuple[str, int], tuple[str, Mapping[str, int]]] = {}
    notes = list[str]()
    for run in runs:
        notes += run.problems
        counted = [row for row in run.results if row.shots == SHOTS and is_plain(row)]
        values = {(row.task, row.metric): row.value for row in counted}
        wanted = {task: (task, "exact_match") for task in TASKS}
        wanted |= {task: (task, "ranking") for task in CONTROLS}
        missing = [task for task, key in wanted.items() if key not in values]
        if not run.results or missing:
            if run.results:
                listed = ", ".join(missing)
                notes.append(f"{run.name}: left out, it has no {listed} at {SHOTS} examples.")
            continue
        seed, own = counted[0].seed, {task: values[key] for task, key in wanted.items()}
        overall = sum(own[task] for task in TASKS) / len(TASKS)
        seeds = found.setdefault(run.row, {})
        if seed in seeds:
            notes.append(f"{run.name}: left out, another run has the row {run.row!r}, seed {seed}.")
        else:
            seeds[seed] = {**own, OVERALL: overall}
            asked[run.row, seed] = run.name, {row.task: row.n for row in counted}
    notes += _not_compared(asked)
    order = {row: place for place, row in enumerate(ABLATIONS)}
    rows = sorted(found, key=lambda row: order.get(counterpart(row), len(order)))
    return {row: found[row] for row in rows}, notes


def _not_compared(asked: Mapping[tuple[str, int], tuple[str, Mapping[str, int]]]) -> list[str]:
    """Returns a note on each run without a base of its seed, and on other numbers of queries.

    Args:
        asked: (row, seed) -> (name of the run, number of queries of each task).
    """
    notes = []
    for (_, seed), (name, numbers) in asked.items():
        if (BASE, seed) not in asked:
            if any(each == BASE for each, _ in asked):
                notes.append(f"{name}: left out, no run of the base has the seed {seed}.")
            continue
        base = asked[BASE, seed][1]
        others = [task for task in numbers if 0 < numbers[task] != base[task] > 0]  # 0: not known
        if others:
            listed = ", ".join(f"{task} {numbers[task]} and {base[task]}" for task in others)
            notes.append(f"{name}: other numbers of queries than the base of its seed: {listed}.")
    return notes


def _base(seeds: Mapping[int, Values]) -> TableRow:
    cells = [f"{_mean(seeds, name):.3f}" for name in COLUMNS]
    overall = f"{ABLATIONS[BASE].overall:.1f}"
    return TableRow(
        (BASE, *cells, overall, MISSING, _controls(seeds), str(len(seeds))), is_bold=True
    )


def _row(row: str, found: Mapping[str, Difference], seeds: Mapping[int, Values]) -> TableRow:
    paper, overall = published(row), found[OVERALL]
    sign = MISSING
    if paper is not None:
        same = "as the paper" if overall.mean * paper > 0 else "other"
        sign = same if overall.is_clear else f"{same} ~"
    return TableRow(
        (
            row or MISSING,
            *(_text(found[name]) for name in COLUMNS),
            MISSING if paper is None else f"{paper:+.1f}",
            sign,
            _controls(seeds),
            str(len(overall.by_seed)),
        )
    )


def _text(difference: Difference) -> str:
    error = "" if difference.error is None else f" +-{difference.error:.3f}"
    return f"{difference.mean:+.3f}{error}"


def _controls(seeds: Mapping[int, Values]) -> str:
    return " / ".join(f"{_mean(seeds, name):.2f}" for name in CONTROLS)


def _mean(seeds: Mapping[int, Values], name: str) -> float:
    return sum(values[name] for values in seeds.values()) / len(seeds)


def _draw(found: Mapping[str, Mapping[str, Difference]]) -> Figure:
    """Draws the differences in the overall score, ours and the paper's, the largest loss first."""
    overall = {row: each[OVERALL] for row, each in found.items()}
    order = sorted(overall, key=lambda row: -overall[row].mean)
    with curves.style():
        figure = Figure(figsize=(9.5, 1.6 + 0.32 * len(order)), layout="constrained")
        ours, paper = figure.subplots(1, 2, sharey=True)
        for place, row in enumerate(order):
            each = overall[row]
            ours.plot(each.by_seed, [place] * len(each.by_seed), "|", color=curves.FAINT)
            ours.errorbar(
                each.mean, place, xerr=each.error, fmt="o", color=curves.COLOURS[3], capsize=3
            )
            if (value := published(row)) is not None:
                paper.barh(place, value, height=0.5, color=curves.COLOURS[2])
        ours.set_yticks(range(len(order)), order)
        ours.set_xlabel("overall score, 0..1")
        paper.set_xlabel("overall score, percent")
        for axis, title in ((ours, "the tiny world"), (paper, "the paper, Tables 3 and 10")):
            axis.axvline(0, color=curves.INK, linewidth=1)
            axis.set_title(title)
        curves.headline(figure, "What each ablation changes")
    return figure
