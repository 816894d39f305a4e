"""The page of launch/ablations.sh: what each ablation changes in the tiny world, and in the paper.

`write` reads RUNS/seedN/rows/ROW/report/results.json, and writes ablations.md, ablations.json and
ablations.png. A row is a name of configs/ablations/tiny.py. Its difference from the base in the
overall score is compared with that of Table 3 or 10 of the paper, by sign.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathError, PathLike
from flamingo_jax.evaluation.report import curves
from flamingo_jax.evaluation.report.differences import BASE, Difference, differences
from flamingo_jax.evaluation.report.published_ablations import ABLATIONS
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow

_TASKS = ("format", "bind2", "bind4", "format_held_out", "bind2_held_out")
OVERALL = "overall"
COLUMNS = (*_TASKS, OVERALL)
_CONTROLS = ("format_shuffled", "bind2_shuffled")  # ranking: 1/3 and 1/2 by chance
# Rows with other names in the paper's tables, after their counterpart.
_IN_THE_PAPER = {"no_pages": "no_m3w", "small_vision": "nfnet_f0"}
_NOTE = (
    "Differences of exact match from the base, at 4 examples, +- one standard error from all rows' "
    "differences between seeds (evaluation/report/differences.py). overall: the mean of the five "
    "tasks; in the paper's tables of five benchmarks, relative to the state of the art, in percent."
    " Sign: equal or not to the paper's; ~ within two standard errors of 0. Controls: right answer "
    "ranked first where labels are shuffled; chance is 0.33 and 0.50."
)

Results = Mapping[str, Mapping[int, Mapping[str, float]]]  # row -> seed -> column -> value


def read(directory: PathLike) -> dict[str, dict[int, dict[str, float]]]:
    """Returns the values of all runs that have a report: row -> seed -> column -> value.

    Args:
        directory: RUNS, with seedN/rows/ROW/report/results.json.

    Raises:
        PathError: there is no report of the base, a report is damaged, or lacks a task.
    """
    found: dict[str, dict[int, dict[str, float]]] = {}
    for file in sorted(Path(directory).glob("seed*/rows/*/report/results.json")):
        row, seed = file.parent.parent.name, file.parents[3].name.removeprefix("seed")
        if re.fullmatch(r"\d+", seed):
            found.setdefault(row, {})[int(seed)] = _values(file)
    if BASE not in found:
        raise PathError(
            f"{directory} has no report seedN/rows/{BASE}/report/results.json: differences are from"
            " the base. Run launch/ablations.sh first, with --output as --runs here."
        )
    return found


def table(results: Results) -> Table:
    """Returns the values of the base, and the differences of all rows from it.

    Args:
        results: row -> seed -> column -> value.
    """
    base = results[BASE]
    mean = {
        name: sum(values[name] for values in base.values()) / len(base)
        for name in (*COLUMNS, *_CONTROLS)
    }
    head = ("row", *COLUMNS, "paper", "sign", "controls", "seeds")
    controls = " / ".join(f"{mean[name]:.2f}" for name in _CONTROLS)
    cells = (BASE, *(f"{mean[name]:.3f}" for name in COLUMNS), f"{ABLATIONS[BASE].overall}")
    lines = [TableRow((*cells, MISSING, controls, str(len(base))), is_bold=True)]
    for row, found in differences(results, COLUMNS).items():
        paper = _published(row)
        lines.append(
            TableRow(
                (
                    row,
                    *(_text(found[column]) for column in COLUMNS),
                    MISSING if paper is None else f"{paper:+.1f}",
                    _sign(found[OVERALL], paper),
                    " / ".join(
                        f"{sum(v[name] for v in results[row].values()) / len(results[row]):.2f}"
                        for name in _CONTROLS
                    ),
                    str(len(found[OVERALL].by_seed)),
                )
            )
        )
    return Table(head, tuple(lines))


def counterpart(row: str) -> str:
    """Returns the name of a row's counterpart in configs/ablations/flamingo_3b.py."""
    return _IN_THE_PAPER.get(row, row)


def count_of_signs(results: Results) -> tuple[int, int]:
    """Returns how many rows have the paper's sign in the overall score, and of how many."""
    pairs = [
        (found[OVERALL].mean, paper)
        for row, found in differences(results, COLUMNS).items()
        if (paper := _published(row)) is not None
    ]
    return sum(ours * paper > 0 for ours, paper in pairs), len(pairs)


def draw(results: Results) -> Figure:
    """Draws the overall differences of all rows with their errors, and those of the paper."""
    found = {row: each[OVERALL] for row, each in differences(results, COLUMNS).items()}
    order = sorted(found, key=lambda row: found[row].mean)
    with curves.style():
        figure = Figure(figsize=(9.0, 1.4 + 0.3 * len(order)), layout="constrained")
        ours, paper = figure.subplots(1, 2, sharey=True)
        places = range(len(order))
        for place, row in zip(places, order, strict=True):
            each = found[row]
            ours.errorbar(
                each.mean, place, xerr=each.error, fmt="o", color=curves.COLOURS[3], capsize=3
            )
            ours.plot(each.by_seed, [place] * len(each.by_seed), "|", color=curves.FAINT)
        published = [(place, _published(row)) for place, row in zip(places, order, strict=True)]
        known = [(place, value) for place, value in published if value is not None]
        paper.barh([p for p, _ in known], [v for _, v in known], color=curves.COLOURS[2])
        ours.set_yticks(list(places), order)
        for axis, title in ((ours, "tiny world"), (paper, "paper: points of the overall score")):
            axis.axvline(0, color=curves.INK, linewidth=1)
            axis.set_title(title)
        curves.headline(figure, "What each ablation changes in the overall score")
    return figure


def write(directory: PathLike, output: PathLike) -> str:
    """Writes the page; returns the text of the table.

    Args:
        directory: RUNS, see `read`.
        output: created if it does not exist.

    Raises:
        PathError: see `read`, or the page cannot be written.
    """
    results, target = read(directory), paths.make_directory(output)
    same, all_rows = count_of_signs(results)
    said = f"{same} of {all_rows} rows have the paper's sign."
    made = table(results)
    lines = ["# Ablations in the tiny world", "", *made.markdown(), "", said, "", _NOTE, ""]
    paths.write_atomically(target / "ablations.md", "\n".join(lines))
    paths.write_json(target / "ablations.json", _json(results))
    if len(results) > 1:
        buffer = io.BytesIO()
        with curves.style():
            draw(results).savefig(buffer, format="png")
        paths.write_atomically(target / "ablations.png", buffer.getvalue())
    return "\n".join([*made.text(gap=2), "", said])


def _values(file: Path) -> dict[str, float]:
    try:
        rows = {(row["task"], row["metric"]): float(row["value"]) for row in paths.read_json(file)}
        values = {task: rows[task, "exact_match"] for task in _TASKS}
        controls = {task: rows[task, "ranking"] for task in _CONTROLS}
    except (KeyError, TypeError, ValueError) as error:
        raise PathError(
            f"{file} is not a report of launch/ablations.sh: it lacks {error}. Remove "
            f"{file.parent}, and run the script again."
        ) from error
    return {**values, OVERALL: sum(values.values()) / len(values), **controls}


def _published(row: str) -> float | None:
    """Returns the overall score of a row minus that of the base, in the paper's tables."""
    if (name := counterpart(row)) not in ABLATIONS:
        return None
    return ABLATIONS[name].overall - ABLATIONS[BASE].overall


def _text(difference: Difference) -> str:
    error = "" if difference.error is None else f" +-{difference.error:.3f}"
    return f"{difference.mean:+.3f}{error}"


def _sign(difference: Difference, paper: float | None) -> str:
    if paper is None:
        return MISSING
    same = "equal" if difference.mean * paper > 0 else "not equal"
    return same if difference.is_clear else f"{same} ~"


def _json(results: Results) -> dict[str, Any]:
    return {
        "values": {
            row: {str(seed): dict(values) for seed, values in seeds.items()}
            for row, seeds in results.items()
        },
        "differences": {
            row: {
                column: {"mean": each.mean, "by_seed": each.by_seed, "error": each.error}
                for column, each in found.items()
            }
            for row, found in differences(results, COLUMNS).items()
        },
    }

