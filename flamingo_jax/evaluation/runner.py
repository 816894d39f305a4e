"""Runs a task.

Episodes -> prompts -> one prefill each -> decoded answer and candidate scores -> metrics -> rows of
results.json.

Open-ended metrics (exact match of what was decoded) and close-ended ones (ranking of the
candidates) share the reading of the prompt. Queries, support examples and answers depend on (n,
seed) alone, not on the batch size or on the devices. With a directory for its journals, a run that
is killed goes on
from the queries that it had finished.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tqdm

from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.paths import Path, PathLike, write_atomically
from flamingo_jax.evaluation.answer import answer
from flamingo_jax.evaluation.journal import Journal
from flamingo_jax.evaluation.metrics import Prediction, metric, submission
from flamingo_jax.evaluation.task import Episode, Task, TaskError
from flamingo_jax.inference.model import Flamingo

# Of the engine's settings, those that decide how fast an answer comes, not which.
_SHAPES = (
    "lengths",
    "num_images",
    "images_per_pass",
    "candidates_per_pass",
    "latents_megabytes",
    "xattn_chunk",
)
_MOST_CANDIDATES = 100  # of a prediction that are written for inspection: VisDial has as many


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results.json.

    Attributes:
        task, split, shots, metric, value: what was measured, and the value in the metric's unit.
        n: queries; seed: that chose them and their supports.
        selection: of support examples, "random" or "rices".
        ensemble: permutations of the support examples over which scores are averaged; 1 = no
            ensembling.
        decoding: "greedy" or "beam" for decoded answers, "log_likelihood" for ranked ones.
        checkpoint, step: the model.
    """

    task: str
    split: str
    shots: int
    metric: str
    value: float
    n: int
    seed: int
    selection: str
    ensemble: int
    decoding: str
    checkpoint: str
    step: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """An episode with the model's answer, for the sheet of samples."""

    task: str
    shots: int
    episode: Episode
    prediction: Prediction


@dataclasses.dataclass(frozen=True)
class Result:
    """What one task at one number of shots gave."""

    task: str
    shots: int
    rows: tuple[Row, ...]
    predictions: tuple[Prediction, ...]
    samples: tuple[Sample, ...]


def evaluate(
    model: Flamingo,
    task: Task,
    *,
    shots: int,
    n: int,
    seed: int,
    batch_size: int = 100,
    num_samples: int = 0,
    journals: PathLike | None = None,
    model_hash: str = "",
    progress: bool = False,
) -> Result:
    """Evaluates a model on one task at one number of shots.

    Args:
        model: the model; its engine's config says how it decodes and scores.
        task: the task.
        shots: support examples per query.
        n: queries; 0: all that the task has.
        seed: chooses queries and supports.
        batch_size: prompts answered together.
        num_samples: the first episodes that are kept with their images.
        journals: directory of TASK-SHOTS.jsonl, the answers so far; those that are there already
            are taken over. None: nothing is kept.
        model_hash: tells the model's weights from others, in the journal; `core.fingerprint` of
            them.
        progress: show a bar with the time left, on a terminal.

    Returns:
        A row per metric of the task, and all predictions. No row if the right answers are hidden:
        they are judged elsewhere.

    Raises:
        TaskError: the task cannot give such episodes.
        ValueError: an unknown metric.
        PromptError: a prompt that cannot be read, or is too long.
        PathError: the journal cannot be written.
    """
    needs = {metric(name).needs for name in task.metrics}
    try:
        episodes = list(task.episodes(shots, n, seed))
    except ValueError as error:
        raise TaskError(str(error)) from error
    if not episodes:
        raise TaskError(
            f"task {task.name!r} at {shots} shots gave no episodes; expected {n}. Check its data."
        )
    decides = {
        name: value
        for name, value in dataclasses.asdict(model.engine.config).items()
        if name not in _SHAPES
    }
    journal = Journal(
        None if journals is None else Path(journals) / f"{task.name}-{shots}.jsonl",
        {
            "model": model_hash,
            "checkpoint": model.checkpoint,
            "step": model.step,
            "settings": decides,
        },
    )
    hidden = not (progress and sys.stderr.isatty())
    with tqdm.tqdm(
        total=len(episodes),
        desc=f"{task.name} {shots} shots",
        unit="query",
        disable=hidden,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        predictions = answer(
            model,
            episodes,
            journal,
            generate="generation" in needs,
            score="scores" in needs,
            batch_size=batch_size,
            done=bar.update,
        )
    kept = zip(episodes[:num_samples], predictions, strict=False)
    samples = tuple(Sample(task.name, shots, episode, prediction) for episode, prediction in kept)
    rows = (
        ()
        if answers_are_hidden(predictions)
        else _rows(model, task, predictions, shots=shots, seed=seed)
    )
    return Result(task.name, shots, rows, tuple(predictions), samples)


def check_metrics(tasks: Sequence[Task]) -> None:
    """Looks for what the metrics of all tasks need on this machine.

    Before hours of decoding, not after.

    Raises:
        MissingResourceError: a program, package or file is not there; the message says how to
            install it.
        ValueError: an unknown metric.
    """
    for name in dict.fromkeys(name for task in tasks for name in task.metrics):
        metric(name).check()


def answers_are_hidden(predictions: Sequence[Prediction]) -> bool:
    """Whether no right answer is known, as in test-dev of VQAv2."""
    return not any(prediction.answer or prediction.references for prediction in predictions)


def _rows(
    model: Flamingo, task: Task, predictions: Sequence[Prediction], *, shots: int, seed: int
) -> tuple[Row, ...]:
    decoding = {"generation": model.engine.config.decoding, "scores": "log_likelihood"}
    return tuple(
        Row(
            task=task.name,
            split=task.settings.split,
            shots=shots,
            metric=name,
            value=metric(name).value(predictions),
            n=len(predictions),
            seed=seed,
            selection=task.settings.selection,
            ensemble=task.settings.ensemble,
            decoding=decoding[metric(name).needs],
            checkpoint=model.checkpoint,
            step=model.step,
        )
        for name in task.metrics
    )


def evaluate_all(
    model: Flamingo,
    tasks: Sequence[Task],
    shots: Sequence[int],
    *,
    journals: PathLike | None = None,
    log: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> list[Result]:
    """Evaluates every task at every number of shots.

    Args:
        model: the model.
        tasks: the tasks.
        shots: numbers of support examples.
        journals: as in `evaluate`.
        log: gets a line per result.
        **settings: n, seed, batch_size, num_samples, progress of `evaluate`.

    Raises:
        TaskError: a task is defined at none of the numbers of shots.
    """
    model_hash = "" if journals is None else fingerprint(model.engine.params)
    results = []
    for task in tasks:
        if not (defined := [number for number in shots if task.accepts(number)]):
            raise TaskError(
                f"task {task.name!r} is not defined at {list(shots)} shots. Choose "
                "others with --shots."
            )
        for number in defined:
            results.append(
                evaluate(
                    model, task, shots=number, journals=journals, model_hash=model_hash, **settings
                )
            )
            values = "  ".join(f"{row.metric} {row.value:.3f}" for row in results[-1].rows)
            log(
                f"{task.name:<18} {number:>2} shots  "
                f"{values or 'answered; the right answers are hidden'}"
            )
    return results


def write_predictions(path: PathLike, results: Sequence[Result]) -> None:
    """Writes predictions.jsonl.

    One line per episode, with its prompt, answer, decoded text and scores; of many candidates, the
    best only.
    """
    lines = [
        json.dumps(
            {"task": result.task, "shots": result.shots, **_inspectable(prediction)},
            ensure_ascii=False,
        )
        for result in results
        for prediction in result.predictions
    ]
    write_atomically(path, "\n".join(lines) + "\n")


def write_submissions(
    directory: PathLike, results: Sequence[Result], tasks: Sequence[Task]
) -> list[Path]:
    """Writes TASK-SHOTS.json, in the form that the benchmark's server takes, for each result whose right answers are hidden; returns the files.

    Args:
        directory: made if need be.
        results: of all tasks.
        tasks: those of the results; `submission_questions` of one are the questions that its server
            expects answers to, asked or not.

    Raises:
        ValueError: the task does not name its questions.
        PathError: a file cannot be written.
    """
    by_name = {task.name: task for task in tasks}
    hidden = {
        Path(directory) / f"{result.task}-{result.shots}.json": result
        for result in results
        if answers_are_hidden(result.predictions)
    }
    for file, result in hidden.items():
        submission.write(file, result.predictions, by_name[result.task].submission_questions())
    return list(hidden)


def _inspectable(prediction: Prediction) -> dict[str, Any]:
    fields = {
        field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)
    }
    scores = prediction.scores
    if scores is not None and len(scores) > _MOST_CANDIDATES:
        best = sorted(range(len(scores)), key=lambda place: -scores[place])[:_MOST_CANDIDATES]
        fields["candidates"] = [prediction.candidates[place] for place in best]
        fields["scores"] = [scores[place] for place in best]
    return {**fields, "extra": dict(prediction.extra)}
