"""Fine-tuned models in the manner of the paper's Table 2, with the published numbers.

                   Flamingo-80B, 32 shots  fine-tuned  SotA 2022  these runs
VQAv2 test-dev                       67.6        82.0      81.3†           -
COCO test                           113.8       138.1     149.6†       121.4
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.registry import PAPER_BENCHMARKS
from flamingo_jax.evaluation.report.benchmark_table import split_of, title_of
from flamingo_jax.evaluation.report.joined_runs import JoinedRun
from flamingo_jax.evaluation.report.joined_table import JoinedTable
from flamingo_jax.evaluation.report.published import benchmark_of
from flamingo_jax.evaluation.report.published_fine_tuning import BENCHMARKS_2, TABLE_2, column_of
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow
from flamingo_jax.evaluation.report.units import unit

_ABOUT = "Fine-tuned models are asked without examples; percent, and 100 times CIDEr and NDCG."
_NOTES = (
    "Published: Flamingo, arXiv 2204.14198 v2, Table 2: Flamingo-80B, and the state of the art.",
    "† An ensemble, or optimised for the metric.",
)


def fine_tuning_table(runs: Sequence[JoinedRun]) -> JoinedTable:
    """Returns Table 2 with the runs in it.

    Every result at 0 shots of a run has a line: below the published numbers of its benchmark and
    split, or last if the table has none. Results at other shots are named in a note.

    Args:
        runs: evaluations of fine-tuned models; each may have any of the benchmarks.
    """
    notes, lines = list(_NOTES), list[TableRow]()
    notes += [f"{each.correction}." for each in TABLE_2 if each.correction]
    own = [(run, row) for run in runs for row in run.results if row.shots == 0 and _is_main(row)]
    columns = [(run, row, column_of(benchmark_of(row.task), split_of(row))) for run, row in own]
    for each in TABLE_2:
        title = f"{PAPER_BENCHMARKS[each.benchmark].title} {each.split}"
        few_shot = MISSING if each.few_shot is None else f"{each.few_shot:.1f}"
        sota = f"{each.sota:.1f}{'†' * each.has_tricks}"
        lines.append(TableRow((title, few_shot, f"{each.fine_tuned:.1f}", sota, "")))
        lines += [_line(run, row) for run, row, column in columns if column is each]
    for run, row, column in columns:
        if column is None:
            lines.append(_line(run, row))
            notes.append(f"{run.name}: {_why_none(row)}")
    for run in runs:
        notes += run.problems
        if others := sorted({row.shots for row in run.results} - {0}):
            shots = ", ".join(map(str, others))
            notes.append(f"{run.name}: results at {shots} shots are not of this table.")
        if run.results and not any(run is each for each, _ in own):
            notes.append(f"{run.name}: no result at 0 shots in the metric of a benchmark.")
    head = ("", "Flamingo-80B, 32 shots", "fine-tuned", "SotA 2022", "these runs")
    title = "Fine-tuning (Table 2)"
    return JoinedTable(
        "table_2", title, _ABOUT, Table(head, tuple(lines)), tuple(dict.fromkeys(notes))
    )


def _is_main(row: Row) -> bool:
    """Returns True for the metric that the paper reports; a task of a user has any metric."""
    listed = PAPER_BENCHMARKS.get(benchmark_of(row.task))
    return listed is None or row.metric == listed.metric.name


def _line(run: JoinedRun, row: Row) -> TableRow:
    shown = unit(row.task, row.metric)
    label = f"  {run.name}: {title_of(row.task)} {split_of(row)}"
    return TableRow((label, "", "", "", shown.text(row.value)), is_bold=True)


def _why_none(row: Row) -> str:
    name = benchmark_of(row.task)
    if name not in BENCHMARKS_2:
        return f"Table 2 does not have {row.task}."
    splits = " and ".join(each.split for each in TABLE_2 if each.benchmark == name)
    return (
        f"{row.task} is of {split_of(row)}, Table 2 of {splits}: they are not comparable to the "
        "last digit."
    )
