"""Results of a run in the manner of the paper's Table 1, with the results of others.

Each benchmark is a section, with the benchmarks and numbers of shots of this run:

    COCO: CIDEr-D x 100, 5000 queries of Karpathy test
    paper: Karpathy test; 32.2 before Flamingo with few or no examples, 143.3 fine-tuned in 2022
                               0      4     32
      this run              71.2   84.0   97.9
      Flamingo-3B [1]       73.0   85.0   99.0
      OpenFlamingo-3B [2]   74.9   77.3   93.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluation.benchmarks.benchmark import Series
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.metrics import METRICS
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.registry import BENCHMARKS, PAPER_BENCHMARKS
from flamingo_jax.evaluation.report.published import SOURCES, benchmark_of, overall, series
from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow
from flamingo_jax.evaluation.report.units import unit

_OWN = "this run"
_YOUTUBE = (
    "Videos: the paper evaluates those of YouTube that were public in April 2022; fewer are today."
)
_OVERALL = (
    "Overall: the score of the paper's Table 3, the mean over the DEV benchmarks; there on "
    "validation queries, here on those of this table."
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One model in one setting.

    Attributes:
        label: model and setting.
        values: number of shots -> printed value.
        is_own: True if the line is of this run.
    """

    label: str
    values: Mapping[int, str]
    is_own: bool


@dataclasses.dataclass(frozen=True)
class TableSection:
    """One benchmark.

    Attributes:
        title: name of the benchmark.
        about: metric and queries.
        paper: the paper's queries and the state of the art; "" if the paper lacks the benchmark.
        shots: numbers of shots of this run.
        lines: the lines of this run first.
        notes: what makes the numbers differ from published ones.
    """

    title: str
    about: str
    paper: str
    shots: tuple[int, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def table(self, corner: str) -> Table:
        """Returns models by numbers of shots; `corner` is the title of the first column."""
        rows = []
        for line in self.lines:
            values = [line.values.get(shots, MISSING) for shots in self.shots]
            rows.append(TableRow((line.label, *values), is_bold=line.is_own))
        return Table((corner, *map(str, self.shots)), tuple(rows))


def sections(rows: Sequence[Row]) -> list[TableSection]:
    """Returns a section per benchmark, in the order of `tasks_of`.

    The overall score is last, if all five DEV benchmarks were run.

    Args:
        rows: results on benchmarks.
    """
    found = [_section(task, [row for row in rows if row.task == task]) for task in tasks_of(rows)]
    return found + ([total] if (total := _overall(rows)) else [])


def markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown, with its sources."""
    found = sections(rows)
    lines = [_run(rows), ""]
    for section in found:
        lines += [
            f"### {section.title}",
            "",
            f"{section.about}{f'; {section.paper}' if section.paper else ''}",
            "",
        ]
        lines += [*section.table("shots").markdown(), ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(found))]) + "\n"


def text(rows: Sequence[Row]) -> str:
    """Returns the table for a terminal, with its sources."""
    found = sections(rows)
    label_width = max(len(line.label) for section in found for line in section.lines)
    lines = [_run(rows), ""]
    for section in found:
        lines += [f"{section.title}: {section.about}", *filter(None, [section.paper])]
        lines += section.table("").text(label_width=label_width, column_width=8, indent=2)
        lines.append("")
    return "\n".join([*lines, *_notes(found)]) + "\n"


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """Returns the tasks of rows, in the order of the paper's table, then of the run."""
    place = {name: number for number, name in enumerate(PAPER_BENCHMARKS)}
    tasks = list(dict.fromkeys(row.task for row in rows))
    return sorted(tasks, key=lambda task: place.get(benchmark_of(task), len(place)))


def own_setting(row: Row) -> str:
    """Returns the setting of a row, such as "RICES, 6 orders, 5 per class".

    "" for random support examples without ensembling, from a support set of the paper's size.
    """
    parts = (
        "RICES" if row.selection == "rices" else "",
        f"{row.ensemble} orders" if row.ensemble > 1 else "",
        _size(row.num_support, Protocol.num_support, "support examples"),
        _size(row.num_support_per_class, Protocol.num_support_per_class, "per class"),
    )
    return ", ".join(filter(None, parts))


def _size(number: int | None, default: int, what: str) -> str:
    return "" if number in (None, default) else f"{number} {what}"


def published(rows: Sequence[Row]) -> list[Series]:
    """Returns the published results to print with the rows of a task.

    Those with RICES are included only if the run has rows with RICES.

    Args:
        rows: rows of one task.
    """
    chosen = {"", "random", *(row.selection for row in rows)}
    return [each for each in series(benchmark_of(rows[0].task)) if each.selection in chosen]


def main_metric(rows: Sequence[Row]) -> str:
    """Returns the metric of the paper's table if it was measured, else the first of the rows.

    Args:
        rows: rows of one task.
    """
    measured = [row.metric for row in rows]
    listed = PAPER_BENCHMARKS.get(benchmark_of(rows[0].task))
    return listed.metric.name if listed and listed.metric.name in measured else measured[0]


def _section(task: str, rows: Sequence[Row]) -> TableSection:
    main, shots = main_metric(rows), _shots(rows)
    own: dict[str, dict[int, str]] = {}
    for row in sorted(rows, key=lambda row: row.metric != main):
        name = "" if row.metric == main else unit(task, row.metric).title
        label = ", ".join(filter(None, (_OWN, own_setting(row), name)))
        shown = unit(task, row.metric)
        own.setdefault(label, {})[row.shots] = shown.text(row.value)
        for group, value in (row.groups or {}).items():
            own.setdefault(f"{label}, {group}", {})[row.shots] = shown.text(value)
    lines = [Line(label, values, is_own=True) for label, values in own.items()]
    listed = PAPER_BENCHMARKS.get(benchmark_of(task))
    if listed and listed.metric.name == main:
        for each in published(rows):
            values = {
                number: f"{value:.1f}" for number, value in each.values.items() if number in shots
            }
            if values:
                source = list(SOURCES).index(each.source) + 1
                lines.append(Line(f"{each.label} [{source}]", values, is_own=False))
    numbers = sorted({row.n for row in rows})
    count = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    splits = dict.fromkeys(map(split_of, rows))
    about = f"{unit(task, main).title}, {count} queries of {' and '.join(splits)}"
    paper, notes = "", _caveats(task, main, shots)
    if listed:
        before = {
            "before Flamingo with few or no examples": listed.zero_few_shot_sota,
            "fine-tuned in 2022": listed.fine_tuned_sota,
        }
        best = ", ".join(f"{value} {what}" for what, value in before.items() if value)
        paper = f"paper: {listed.queries}; {best}"
        if others := [split for split in splits if split != listed.queries]:
            notes.append(
                f"{title_of(task)}: the published numbers are of {listed.queries}, those of this "
                f"run of {' and '.join(others)}: they are not comparable to the last digit."
            )
    return TableSection(title_of(task), about, paper, tuple(shots), tuple(lines), tuple(notes))


def split_of(row: Row) -> str:
    """Returns the name of the split that a row is about; version 0.4.0 wrote "test" for each."""
    listed = BENCHMARKS.get(row.task)
    return listed.split("test") if listed and row.split == "test" else row.split


def title_of(task: str) -> str:
    """Returns the name of a task in tables and pictures, such as "VQAv2 (val)" for vqav2_val.

    A task that the paper does not have keeps its name.
    """
    listed = PAPER_BENCHMARKS.get(benchmark_of(task))
    if listed is None:
        return task
    return listed.title if task in PAPER_BENCHMARKS else f"{listed.title} (val)"


def _caveats(task: str, metric: str, shots: Sequence[int]) -> list[str]:
    listed = PAPER_BENCHMARKS.get(benchmark_of(task))
    notes = [METRICS[metric].caveat] if metric in METRICS else []
    notes += [_YOUTUBE] if listed and listed.is_youtube else []
    notes += [listed.beyond_max_shots] if listed and max(shots) > listed.max_shots else []
    return list(filter(None, notes))


def _overall(rows: Sequence[Row]) -> TableSection | None:
    """Returns the overall score of the run, and of models that report all five DEV benchmarks.

    VQAv2 counts on its validation split, since the answers of test-dev are hidden.
    """
    dev = [name for name, listed in PAPER_BENCHMARKS.items() if listed.is_dev]
    own: dict[str, dict[int, dict[str, float]]] = {}
    theirs: dict[str, dict[int, dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: row.task in dev):  # the paper's split counts first
        name = benchmark_of(row.task)
        if name in dev and row.metric == PAPER_BENCHMARKS[name].metric.name:
            label = ", ".join(filter(None, (_OWN, own_setting(row))))
            value = row.value * unit(row.task, row.metric).factor
            own.setdefault(label, {}).setdefault(row.shots, {})[name] = value
    for name in dev:
        for each in series(name):
            label = f"{each.label} [{list(SOURCES).index(each.source) + 1}]"
            for shots, value in each.values.items():
                theirs.setdefault(label, {}).setdefault(shots, {})[name] = value
    mine = _totals(own)
    if not mine:
        return None
    run = tuple(sorted({number for line in mine for number in line.values}))
    others = [dataclasses.replace(line, is_own=False) for line in _totals(theirs)]
    others = [line for line in others if line.values.keys() & set(run)]
    about = "percent of the fine-tuned state of the art, mean over the five DEV benchmarks"
    return TableSection("Overall", about, "", run, (*mine, *others), (_OVERALL,))


def _totals(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[Line]:
    """Returns the lines with an overall score, from {label: {shots: {benchmark: value}}}."""
    lines = []
    for label, by_shots in found.items():
        totals = {shots: overall(values) for shots, values in by_shots.items()}
        texts = {shots: f"{total:.1f}" for shots, total in totals.items() if total is not None}
        if texts:
            lines.append(Line(label, texts, is_own=True))
    return lines


def _shots(rows: Sequence[Row]) -> list[int]:
    return sorted({row.shots for row in rows})


def _run(rows: Sequence[Row]) -> str:
    seeds = ", ".join(map(str, dict.fromkeys(row.seed for row in rows)))
    decoding = ", ".join(dict.fromkeys(row.decoding.replace("_", " ") for row in rows))
    return f"This run: {rows[0].checkpoint} at step {rows[0].step}, seed {seeds}; {decoding}."


def _notes(found: Sequence[TableSection]) -> list[str]:
    """Returns the cited sources, then the notes of the sections."""
    cited = {line.label for section in found for line in section.lines}
    notes = [
        f"[{number}] {source.where}{f': {source.caveat}' if source.caveat else ''}."
        for number, source in enumerate(SOURCES.values(), start=1)
        if any(label.endswith(f"[{number}]") for label in cited)
    ]
    return notes + list(dict.fromkeys(note for section in found for note in section.notes))
