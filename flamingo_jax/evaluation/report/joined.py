"""Reports that join several runs: tables and figures of the paper, by name.

    TABLE3, TABLE10    the ablations                FIGURE2    all results at a glance
    TABLE2             fine-tuning                  FIGURE6    the gates over training
    CAPTIONS           captions by group of people, and their toxicity
    TINY               the ablations in the tiny world
    SIZES              model sizes in the tiny world, as Figure 2 on the right

`evaluate --report=NAME,RUN,RUN,...` prints a report, and writes it as Markdown, text, CSV and HTML.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.report import curves, overview_figure
from flamingo_jax.evaluation.report.ablation_table import ablation_table
from flamingo_jax.evaluation.report.caption_table import caption_tables
from flamingo_jax.evaluation.report.fine_tuning_table import fine_tuning_table
from flamingo_jax.evaluation.report.joined_runs import JoinedRun, read_run
from flamingo_jax.evaluation.report.joined_table import JoinedTable
from flamingo_jax.evaluation.report.model_sizes import model_sizes
from flamingo_jax.evaluation.report.report_writer import save
from flamingo_jax.evaluation.report.table import Table, TableRow
from flamingo_jax.evaluation.report.tiny_ablations import tiny_ablations

Pictures = Mapping[str, Figure]
Make = Callable[[Sequence[JoinedRun]], tuple[JoinedTable, Pictures]]


def _table(make: Callable[[Sequence[JoinedRun]], JoinedTable]) -> Make:
    return lambda runs: (make(runs), {})


def _figure_2(runs: Sequence[JoinedRun]) -> tuple[JoinedTable, Pictures]:
    numbers = overview_figure.overview(runs)
    return numbers.table(), {"figure_2.png": overview_figure.draw(numbers)}


def _figure_6(runs: Sequence[JoinedRun]) -> tuple[JoinedTable, Pictures]:
    """Draws the gates of each run; a table has their last values."""
    pictures: dict[str, Figure] = {}
    rows, notes = list[TableRow](), list[str]()
    for run in runs:
        figure = curves.gate_curves(run.log, Path(run.name).name if len(runs) > 1 else "")
        if figure is None:
            notes.append(
                f"{run.name}: it has no log with gates. Give the WORKDIR of a run; one with "
                "xattn.gate = 'none' has no gates."
            )
            continue
        name = "figure_6" if len(runs) == 1 else f"figure_6_{len(pictures) + 1}"
        pictures[f"{name}.png"] = figure
        for gate, values in curves.last_gates(run.log).items():
            shown = " ".join(f"{abs(value):.2f}" for value in values)
            rows.append(TableRow((run.name, gate, f"{name}.png", shown), is_bold=True))
    if not runs:
        notes.append("The paper prints no numbers of this figure: give WORKDIRs of runs.")
    about = "Absolute value of tanh(alpha) at the end, the first layer first."
    head = ("", "gate", "picture", "layers")
    table = Table(head, tuple(rows))
    return JoinedTable("figure_6", "Gates (Figure 6)", about, table, tuple(notes)), pictures


REPORTS: Mapping[str, Make] = {
    "TABLE2": _table(fine_tuning_table),
    "TABLE3": _table(functools.partial(ablation_table, 3)),
    "TABLE10": _table(functools.partial(ablation_table, 10)),
    "FIGURE2": _figure_2,
    "FIGURE6": _figure_6,
    "TINY": tiny_ablations,
    "SIZES": model_sizes,
}


CAPTIONS = "CAPTIONS"
NAMES = (*REPORTS, CAPTIONS)


def join(
    name: str,
    runs: Sequence[str],
    output: PathLike | None,
    groups: str | None = None,
    toxicity: str | None = None,
) -> str:
    """Makes a report; returns it as text, with the files that were written.

    Args:
        name: a key of REPORTS, in any case.
        runs: [ROW=]DIR of each run; see `joined_runs`.
        output: directory of the files; None: nothing is written.
        groups: file of the groups of images, for CAPTIONS.
        toxicity: MODULE:FUNCTION that scores texts, for CAPTIONS.

    Raises:
        ConfigError: there is no such report, a run is given twice, none of the runs has results,
            or `groups` or `toxicity` cannot be used.
        PathError: a file cannot be read, or the directory cannot be written.
        MissingResourceError: something that CIDEr needs is not installed.
    """
    key = re.sub(r"[\s_]", "", name).upper()
    if key not in NAMES:
        raise ConfigError(
            f"--report={name}: expected {', '.join(NAMES)}, then the directories of runs, as in "
            "--report=TABLE3,runs/base,runs/every_4th."
        )
    if key != CAPTIONS and (groups or toxicity):
        raise ConfigError(f"--groups and --toxicity belong to --report={CAPTIONS}, got {name}.")
    if empty := [word for word in runs if not word.rpartition("=")[2]]:
        raise ConfigError(
            f"--report={','.join([name, *runs])}: {empty[0]!r} is no directory; expected "
            "NAME,RUN,RUN, where RUN is DIR or ROW=DIR."
        )
    given = [word.rstrip("/") for word in runs]
    if twice := [word for word in given if given.count(word) > 1]:
        raise ConfigError(f"--report={name}: {twice[0]} is given {given.count(twice[0])} times.")
    pictures: Pictures = {}
    if key == CAPTIONS:
        tables = caption_tables(runs, groups, toxicity)
    else:
        found = [read_run(word) for word in runs]
        if found and not any(run.results or run.log for run in found):
            raise ConfigError(" ".join(problem for run in found for problem in run.problems))
        table, pictures = REPORTS[key](found)
        tables = [table]
    text = "\n".join(table.text() for table in tables)
    if output is None:
        return text
    written = [path for table in tables for path in table.write(output)]
    written += [save(each, Path(output) / at) for at, each in pictures.items()]
    return f"{text}\nWritten: {', '.join(map(str, written))}"
