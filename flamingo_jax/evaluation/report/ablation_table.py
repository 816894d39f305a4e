"""Runs of the ablations in the manner of the paper's Tables 3 and 10.

Below each published row are the runs that repeat it:

                                          params        step time  COCO  ...  overall  to base
    Flamingo-3B: short training             3.2B           1.74 s  86.5  ...     70.7
      runs/base                             3.2B  1.91 s measured  80.2  ...     65.1
    (iii) tanh gating: no                   3.2B           1.74 s  78.4  ...     66.5     -4.2
      runs/no_gate                          3.2B  1.52 s planned   75.3  ...     61.0     -4.1
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.registry import PAPER_BENCHMARKS
from flamingo_jax.evaluation.report.benchmark_table import split_of
from flamingo_jax.evaluation.report.joined_runs import JoinedRun, is_plain
from flamingo_jax.evaluation.report.joined_table import JoinedTable
from flamingo_jax.evaluation.report.published import benchmark_of, overall
from flamingo_jax.evaluation.report.published_ablations import (
    ABLATIONS,
    DEV,
    SHOTS,
    Ablation,
    Number,
    rows_of,
)
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow
from flamingo_jax.evaluation.report.units import unit

_BASE = "base"
_VALIDATION = ("validation", "validation, from train", "queries during training")
_ABOUT = (
    f"{SHOTS} shots; percent, and CIDEr x 100. Overall: the mean over the five benchmarks of the "
    "value in percent of the fine-tuned state of the art. To base: the overall score minus that "
    "of the base model."
)
_SOURCE = (
    "Published: Flamingo, arXiv 2204.14198 v2, Table {table}: validation queries of the DEV "
    "benchmarks; step times of updates on all datasets, on TPUs that the paper does not count."
)
_STAR = "* The run had 4 times as many chips; its time is multiplied by 4."


def ablation_table(table: Number, runs: Sequence[JoinedRun]) -> JoinedTable:
    """Returns Table 3 or 10 with the runs in it.

    A run whose row is not in the table comes last, with a note. So does one without results.

    Args:
        table: number of the table.
        runs: the runs.
    """
    published = rows_of(table)
    known = {each.row for each in published}
    scores = {id(run): dev_scores(run.results) for run in runs}
    totals = [
        total
        for run in runs
        if run.row == _BASE and (total := overall(scores[id(run)])) is not None
    ]
    base = statistics.fmean(totals) if totals else None
    lines: list[TableRow] = []
    for each in published:
        lines.append(_published(each))
        lines += [_line(run, scores[id(run)], base) for run in runs if run.row == each.row]
    others = [run for run in runs if run.row not in known]
    lines += [_line(run, scores[id(run)], base) for run in others if run.results]
    notes = [_SOURCE.format(table=table)]
    notes += [_STAR] if any(each.is_on_more_chips for each in published) else []
    notes += [f"{each.label}: {each.correction}." for each in published if each.correction]
    for run in runs:
        notes += _notes(run, scores[id(run)], table)
    if any(run.results for run in runs) and base is None:
        notes.append("No run of the base model has all five scores: differences are left out.")
    head = ("", "params", "step time", *(PAPER_BENCHMARKS[name].title for name in DEV))
    head = (*head, "overall", "to base")
    title = f"Ablations of Flamingo-3B (Table {table})"
    return JoinedTable(
        f"table_{table}", title, _ABOUT, Table(head, tuple(lines)), tuple(dict.fromkeys(notes))
    )


def dev_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Returns {DEV benchmark: its score at 4 shots}, in the unit of the publications.

    Validation queries, which the paper takes, count before those of other splits. Results with
    RICES or an ensemble do not count.
    """
    return {
        name: row.value * unit(row.task, row.metric).factor
        for name, row in _dev_results(rows).items()
    }


def _dev_results(rows: Sequence[Row]) -> dict[str, Row]:
    """Returns {DEV benchmark: the result that counts}."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.split in _VALIDATION):  # the last one counts
        name = benchmark_of(row.task)
        is_main = name in DEV and row.metric == PAPER_BENCHMARKS[name].metric.name
        if is_main and row.shots == SHOTS and is_plain(row):
            found[name] = row
    return found


def _published(row: Ablation) -> TableRow:
    values = [f"{row.scores[name]:.1f}" for name in DEV]
    change = row.overall - ABLATIONS[_BASE].overall
    to_base = f"{change:+.1f}" if row.row != _BASE else ""
    size = f"{row.parameters:.1f}B"
    return TableRow((row.label, size, row.step_time, *values, f"{row.overall:.1f}", to_base))


def _line(run: JoinedRun, scores: Mapping[str, float], base: float | None) -> TableRow:
    values = [f"{scores[name]:.1f}" if name in scores else MISSING for name in DEV]
    total = overall(scores)
    change = MISSING if base is None or total is None else f"{total - base:+.1f}"
    cells = (_size(run.parameters), run.step_time or MISSING, *values)
    cells = (*cells, MISSING if total is None else f"{total:.1f}")
    to_base = "" if run.row == _BASE else change
    return TableRow((f"  {run.name}", *cells, to_base), is_bold=True)


def _size(parameters: int | None) -> str:
    if parameters is None:
        return MISSING
    if parameters < 1_000_000:
        return f"{parameters / 1e3:.0f}k"
    return f"{parameters / 1e9:.1f}B" if parameters >= 50_000_000 else f"{parameters / 1e6:.1f}M"


def _notes(run: JoinedRun, scores: Mapping[str, float], table: Number) -> list[str]:
    """Returns what is missing of a run, and what differs from the paper's protocol."""
    notes = list(run.problems)
    if not run.results:
        return notes
    if not run.row:
        notes.append(
            f"{run.name}: its config's name is that of no ablation. Give ROW={run.name}; ROW is "
            f"one of {', '.join(each.row for each in rows_of(table))}."
        )
    elif run.row not in ABLATIONS:
        notes.append(f"{run.name}: neither Table 3 nor Table 10 has the row {run.row!r}.")
    elif run.row != _BASE and ABLATIONS[run.row].table != table:
        notes.append(f"{run.name}: the row {run.row!r} is in Table {ABLATIONS[run.row].table}.")
    if missing := [name for name in DEV if name not in scores]:
        notes.append(f"{run.name}: no result of {', '.join(missing)} at {SHOTS} shots.")
    splits = {
        name: split_of(row)
        for name, row in _dev_results(run.results).items()
        if row.split not in _VALIDATION
    }
    if splits:
        listed = ", ".join(f"{name} {split}" for name, split in splits.items())
        notes.append(f"{run.name}: not of validation queries, as the paper's: {listed}.")
    return notes
