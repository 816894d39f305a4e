"""Reads what several runs left, for one table of all.

    [ROW=]DIR    the output of an evaluation: results.json, and the checkpoint that it names
                 a WORKDIR: the newest evaluation during training in metrics.jsonl
    DIR/plan.json or WORKDIR/plan.json    what `plan --json` wrote; for a planned step time

ROW is the row of the paper's table that the run repeats. Without it, the name of the run's config
says it: configs/ablations/flamingo_3b.py names a config "flamingo_3b_ROW", and tiny.py there
"tiny_flamingo_ROW".
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.core import paths
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report.training_logs import CONFIG, LOG, read_log, workdir_of
from flamingo_jax.training.logs import number

RESULTS, PLAN = "results.json", "plan.json"
DURING_TRAINING = "queries during training"
_CONFIG_NAMES = ("flamingo_3b_", "tiny_flamingo_")
_EVALUATION = re.compile(r"evaluate/(\w+)/(\d+)/(\w+)")


@dataclasses.dataclass(frozen=True)
class JoinedRun:
    """What is known of a run.

    Attributes:
        name: its directory, as given.
        row: row of the paper's table that it repeats; "" if nothing says it.
        results: its results; () if there are none.
        parameters: number of weights; None if it is not known.
        measured_seconds: median time of an update; None if it is not known.
        planned_seconds: the compiler's estimate; None without a plan.
        log: the lines of metrics.jsonl.
        problems: what is missing or damaged, a line each.
    """

    name: str
    row: str = ""
    results: tuple[Row, ...] = ()
    parameters: int | None = None
    measured_seconds: float | None = None
    planned_seconds: float | None = None
    log: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def step_time(self) -> str:
        """The time of an update, and whether it was measured or planned; "" if it is unknown."""
        times = {"measured": self.measured_seconds, "planned": self.planned_seconds}
        return ", ".join(f"{seconds:.2f} s {how}" for how, seconds in times.items() if seconds)


def read_run(word: str) -> JoinedRun:
    """Reads a run. What is missing is a line in `problems`, not an error.

    Args:
        word: [ROW=]DIR.
    """
    row, name = _split(word)
    directory, problems = Path(name), list[str]()
    results: tuple[Row, ...] = ()
    checkpoint: Path | None = directory if (directory / LOG).exists() else None
    if (directory / RESULTS).exists():
        try:
            results = read_results(directory / RESULTS)
            checkpoint = Path(results[0].checkpoint) if results else checkpoint
        except (paths.PathError, ConfigError) as error:
            problems.append(str(error))
    elif checkpoint is None:
        problems.append(
            f"{name}: there is no {RESULTS} and no {LOG}. Give the output of an evaluation, or the "
            "WORKDIR of a run."
        )
    workdir = workdir_of(checkpoint) if checkpoint else None
    log: tuple[Mapping[str, Any], ...] = ()
    try:
        log = tuple(read_log(workdir / LOG)) if workdir else ()
    except (OSError, paths.PathError) as error:
        problems.append(str(error))
    card = _card(checkpoint, workdir)
    records = _records(workdir, card)
    if not results and not problems:
        results = _during_training(log, name, _seed_of(records))
        if not results:
            problems.append(f"{name}: it has no results.")
    plan = _first_json([place / PLAN for place in (directory, workdir) if place], problems)
    if results and not (card or workdir):
        problems.append(
            f"{name}: its checkpoint {checkpoint} is not here, so its size and step time are not "
            "known."
        )
    seconds = [value for line in log if (value := number(line.get("step_seconds"))) is not None]
    return JoinedRun(
        name=name,
        row=row or _row_of(records),
        results=results,
        parameters=_parameters(card, plan),
        measured_seconds=statistics.median(seconds) if seconds else None,
        planned_seconds=number(plan.get("step_seconds")),
        log=log,
        problems=tuple(problems),
    )


def read_results(file: Path) -> tuple[Row, ...]:
    """Reads a results.json; fields that later versions add are passed over.

    Raises:
        PathError: it cannot be read.
        ConfigError: it has something else than results.
    """
    found = paths.read_json(file)
    if not isinstance(found, list) or not all(isinstance(line, dict) for line in found):
        raise ConfigError(f"{file} is damaged: expected a list of results.")
    known = {field.name for field in dataclasses.fields(Row)}
    try:
        return tuple(
            from_dict(Row, {name: line[name] for name in line.keys() & known}, f"result {i}")
            for i, line in enumerate(found)
        )
    except ConfigError as error:
        raise ConfigError(f"{file} is damaged: {error}") from error


def is_plain(row: Row) -> bool:
    """Returns True for a result without RICES and without an ensemble, as tables compare them."""
    return row.selection != "rices" and row.ensemble == 1


def _split(word: str) -> tuple[str, str]:
    row, is_named, directory = word.partition("=")
    if is_named and re.fullmatch(r"\w+", row) and not Path(word).exists():
        return row, directory
    return "", word


def _during_training(log: Sequence[Mapping[str, Any]], name: str, seed: int) -> tuple[Row, ...]:
    """Returns the newest evaluation of a training run; the log does not say how many queries."""
    for line in reversed(log):
        found = [
            (key[1], int(key[2]), key[3], value)
            for text in line
            if (key := _EVALUATION.fullmatch(text)) and (value := number(line[text])) is not None
        ]
        if found:
            step, split = int(line["step"]), DURING_TRAINING
            return tuple(
                Row(task, split, shots, metric, value, 0, seed, "random", 1, "", name, step)
                for task, shots, metric, value in found
            )
    return ()


def _card(*places: Path | None) -> Mapping[str, Any]:
    """Returns the first model.json that there is, or {}."""
    for place in places:
        try:
            if place is not None:
                return read_card(place)[1]
        except CheckpointError:
            continue
    return {}


def _first_json(files: Sequence[Path], problems: list[str]) -> Mapping[str, Any]:
    """Returns the content of the first of these files that there is, or {}."""
    for file in files:
        if file.exists():
            try:
                found = paths.read_json(file)
            except paths.PathError as error:
                problems.append(str(error))
            else:
                if isinstance(found, dict):
                    return found
                problems.append(f"{file} is damaged: expected an object.")
            break
    return {}


def _parameters(card: Mapping[str, Any], plan: Mapping[str, Any]) -> int | None:
    counted = card.get("parameters")
    if isinstance(counted, int):
        return counted
    groups = plan.get("parameters")
    if isinstance(groups, dict) and groups and all(isinstance(n, int) for n in groups.values()):
        return sum(groups.values())
    return None


def _records(workdir: Path | None, card: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns what is known of a run's config: its config.json, and the record of an export."""
    run = card.get("run")
    record = run.get("record") if isinstance(run, dict) else None
    config = _first_json([workdir / CONFIG], []) if workdir else {}
    return [config, record if isinstance(record, dict) else {}]


def _row_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Returns the row that the name of a run's config says, or ""."""
    for found in records:
        name = found.get("name")
        for prefix in _CONFIG_NAMES:
            if isinstance(name, str) and name.startswith(prefix):
                return name.removeprefix(prefix)
    return ""


def _seed_of(records: Sequence[Mapping[str, Any]]) -> int:
    """Returns the seed of a run, which is that of its evaluations; 0 if nothing says it."""
    seeds = (found.get("seed") for found in records)
    return next((seed for seed in seeds if isinstance(seed, int)), 0)
