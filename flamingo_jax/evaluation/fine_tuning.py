"""Fine-tunes on one benchmark: a grid of runs, of which the best is chosen early (paper, B.2.2).

    runs of the grid --a share of the updates--> validation --the best share--> more updates --> ...
    the best run --> test --> results.json and Table 2, with the published row

    WORKDIR/runs/NAME/    a workdir of `train` for each run
    WORKDIR/grid.json     what is known of each run: {name: {updates: value}}
    WORKDIR/report/       the test of the best run

The grid is the paper's. The early choice is ours: the paper does not say how its grid was searched.
The same call again continues: a run that was measured after a number of updates is not run again
for it, and a run that was stopped resumes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import agreement, overrides, paths
from flamingo_jax.core.config import ConfigError, editable, from_dict
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import run as evaluation_run
from flamingo_jax.evaluation.config import EvaluateConfig, FineTuneConfig
from flamingo_jax.evaluation.registry import BENCHMARKS
from flamingo_jax.evaluation.report import joined
from flamingo_jax.evaluation.report.units import unit
from flamingo_jax.training import logs
from flamingo_jax.training.config import TrainConfig

GRID, REPORT = "grid.json", "report"
DIVERGED = -math.inf
UNRATED = ("visdial",)  # only its validation split has the ratings that NDCG needs

Train = Callable[[TrainConfig, Path], object]


@dataclasses.dataclass(frozen=True)
class GridRun:
    """One run of the grid.

    Attributes:
        name: its labels, such as "learning_rate_3e-07.batch_size_8".
        config: the run to its end.
        workdir: of its training.
    """

    name: str
    config: TrainConfig
    workdir: Path

    def until(self, share: float) -> TrainConfig:
        """Returns the run up to a share of its updates; its learning rate is that of the whole."""
        optimizer = self.config.optimizer
        if optimizer.schedule != "constant" and optimizer.decay_steps is None:
            most = max(self.config.steps, optimizer.warmup_steps + 1)
            optimizer = dataclasses.replace(optimizer, decay_steps=most)
        return dataclasses.replace(
            self.config, steps=max(1, round(share * self.config.steps)), optimizer=optimizer
        )


def runs_of(config: FineTuneConfig, workdir: PathLike) -> list[GridRun]:
    """Returns all runs of a grid.

    Raises:
        ConfigError: a label sets a field that does not exist, or to a value that it cannot have; or
            the benchmark has no validation queries with a known value.
    """
    if config.task in UNRATED:
        raise ConfigError(
            f"config.task is {config.task!r}, and its training examples have no ratings, so no "
            "run can be chosen by them: train one point of the grid, with python -m "
            f"flamingo_jax.train --config=configs/finetune.py:{config.task}, and evaluate it with "
            f"--task={config.task} --shots=0 --config.text_examples=0."
        )
    found = []
    for labels in itertools.product(*(axis.items() for axis in config.grid.values())):
        names = [f"{axis}_{label}" for axis, (label, _) in zip(config.grid, labels, strict=True)]
        name = ".".join(names) or "run"
        changed = editable(config.run)
        words = [word for _, fields in labels for word in fields.split()]
        overrides.apply(TrainConfig, changed, [_override(word, name) for word in words])
        run = from_dict(TrainConfig, changed, f"config.run ({name})")
        found.append(GridRun(name, _measured(config, run), Path(workdir) / "runs" / name))
    return found


def search(
    config: FineTuneConfig, workdir: PathLike, *, train: Train, report: Callable[[str], None]
) -> GridRun:
    """Trains the runs of a grid, and returns the best.

    Args:
        config: the grid.
        workdir: receives the runs and grid.json.
        train: trains a config in a workdir to its last update, and evaluates it there.
        report: receives a line for each number.

    Raises:
        ConfigError: a run cannot be made of the grid, or was not evaluated, or all have diverged;
            or the records show the validation queries.
    """
    runs, metric = runs_of(config, workdir), BENCHMARKS[config.task].metric.name
    _check_records(config)
    place = paths.make_directory(workdir)
    key = f"evaluate/{config.task}/0/{metric}"
    shown = unit(config.task, metric)
    known: dict[str, dict[int, float]] = {run.name: {} for run in runs}
    for share in config.rungs:
        values: dict[str, float] = {}
        for run in runs:
            part = run.until(share)
            if (value := _value(run, part.steps, key)) is None:
                value = _trained(run, part, key, train)
                text = "diverged" if value == DIVERGED else f"{shown.title} {shown.text(value)}"
                report(f"{run.name}, {part.steps} updates: {text}")
            values[run.name] = known[run.name][part.steps] = value
            _write(place / GRID, known)
        if all(value == DIVERGED for value in values.values()):
            raise ConfigError(
                f"All {len(runs)} runs of {workdir} have diverged. Lower the learning rates of "
                "config.grid."
            )
        # Of equals, the first of the grid; in all processes the same.
        runs = sorted(runs, key=lambda run: -values[run.name])
        if share < 1:
            runs = runs[: math.ceil(config.keep * len(runs))]
    return runs[0]


def test(config: FineTuneConfig, best: GridRun, workdir: PathLike, cluster: Cluster) -> str:
    """Evaluates the best run on the queries of the paper's Table 2; returns the table as text.

    Where the answers are hidden, it writes the submission, and evaluates the labelled split.

    Args:
        config: of the search.
        best: its result.
        workdir: of the search.
        cluster: the processes.
    """
    output, settings = Path(workdir) / REPORT, best.config.evaluate
    labelled = f"{config.task}_val"
    evaluation_run.run(
        EvaluateConfig(
            tasks=(config.task, *([labelled] if labelled in BENCHMARKS else [])),
            shots=(0,),
            n=0,
            seed=best.config.seed,
            text_examples=0,
            num_support=settings.num_support,
            data={**settings.data},
            mesh=dataclasses.replace(best.config.mesh, zero=True, sequence_parallel=True),
        ),
        str(best.workdir),
        str(output),
        cluster,
    )
    if cluster.index > 0 or not (output / "results.json").exists():
        return ""
    return joined.join("TABLE2", [str(output)], output)


def _check_records(config: FineTuneConfig) -> None:
    """Refuses records of `--pipeline=benchmark` that were made without these validation queries."""
    run = config.run
    for name, dataset in run.data.datasets.items():
        mark = Path(dataset.path) / "pipeline.json"  # of data_pipelines.run
        made = paths.read_json(mark) if mark.exists() else {}
        asked = made.get("request", {})
        held_back = {key: asked.get(key) for key in ("validation", "seed", "num_support")}
        expected = {"validation": True, "seed": run.seed, "num_support": run.evaluate.num_support}
        if made.get("pipeline") == "benchmark" and held_back != expected:
            raise ConfigError(
                f"config.run.data.datasets.{name}: {dataset.path} was made with {held_back}, so it "
                f"may show the validation queries; expected {expected}. Make the records again, or "
                "set config.run.seed and config.run.evaluate.num_support."
            )


def _measured(config: FineTuneConfig, run: TrainConfig) -> TrainConfig:
    """Returns a run that is evaluated on its task when it ends, and not before.

    Fine-tuned models are asked without examples.
    """
    evaluate = dataclasses.replace(
        run.evaluate, every=run.steps, tasks=(config.task,), shots=(0,), text_examples=0
    )
    return dataclasses.replace(run, evaluate=evaluate)


def _override(word: str, name: str) -> overrides.Override:
    path, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"config.grid sets {word!r} in {name}; expected FIELD=VALUE.")
    return overrides.Override(path, text)


def _trained(run: GridRun, part: TrainConfig, key: str, train: Train) -> float:
    try:
        train(part, run.workdir)
    except NonFiniteError:
        return DIVERGED
    except (ConfigError, CheckpointError) as error:
        # The fields of a run are below config.run here.
        raise type(error)(re.sub(r"\bconfig\.(?!run\b)", "config.run.", str(error))) from error
    if (value := _value(run, part.steps, key)) is None:
        raise ConfigError(
            f"{run.workdir} has no {key} after {part.steps} updates, so it cannot be compared. See "
            "its metrics.jsonl."
        )
    return value


def _value(run: GridRun, step: int, key: str) -> float | None:
    """Returns what was measured after `step` updates; None if nothing was.

    The first process reads it, so that all decide alike.
    """

    def read(_: Sequence[str]) -> str:
        file = run.workdir / "metrics.jsonl"
        lines: Sequence[Mapping[str, object]] = logs.read(file) if file.exists() else ()
        found = [logs.number(line.get(key)) for line in lines if line.get("step") == step]
        values = [value for value in found if value is not None]
        return json.dumps(values[-1] if values else None, allow_nan=False)

    return json.loads(agreement.verdict("", read))


def _write(file: Path, known: Mapping[str, Mapping[int, float]]) -> None:
    """Writes grid.json in the first process; a run that has diverged has null."""
    shown = {
        name: {step: None if value == DIVERGED else value for step, value in values.items()}
        for name, values in known.items()
    }
    agreement.verdict("", lambda _: str(paths.write_json(file, shown)))
