"""Runs a task: episodes -> prompts -> one prefill each -> decoded answer and candidate scores -> metrics -> rows of results.json.

Open-ended metrics (exact match of what was decoded) and close-ended ones (ranking of the candidates) share the reading of the prompt. Queries, support
examples and answers depend on (n, seed) alone, not on the batch size or on the devices.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax.core.paths import PathLike, write_atomically
from flamingo_jax.evaluation.metrics import Prediction, metric
from flamingo_jax.evaluation.task import Episode, Task, TaskError, accepts
from flamingo_jax.inference.api import Flamingo
from flamingo_jax.inference.engine import Request


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results.json.

    Attributes:
        task, split, shots, metric, value: what was measured, and the value in 0..1.
        n: queries; seed: that chose them and their supports.
        selection: of support examples, "random" or "rices".
        ensemble: permutations of the support examples over which scores are averaged; 1 = no ensembling.
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
    split: str = "test",
    batch_size: int = 100,
    num_samples: int = 0,
) -> Result:
    """Evaluates a model on one task at one number of shots.

    Args:
        model: the model; its engine's config says how it decodes and scores.
        task: the task.
        shots: support examples per query.
        n: queries.
        seed: chooses queries and supports.
        split: written into the rows.
        batch_size: prompts answered together.
        num_samples: the first episodes that are kept with their images.

    Returns:
        A row per metric of the task, and all predictions.

    Raises:
        TaskError: the task cannot give such episodes.
        ValueError: an unknown metric.
        PromptError: a prompt that cannot be read, or is too long.
    """
    needs = {metric(name).needs for name in task.metrics}
    try:
        episodes = list(task.episodes(shots, n, seed))
    except ValueError as error:
        raise TaskError(str(error)) from error
    if not episodes:
        raise TaskError(f"task {task.name!r} at {shots} shots gave no episodes; expected {n}. Check its data.")
    predictions = _predict(
        model, episodes, generate="generation" in needs, score="scores" in needs, batch_size=batch_size
    )
    decoding = {"generation": model.engine.config.decoding, "scores": "log_likelihood"}
    rows = tuple(
        Row(
            task=task.name,
            split=split,
            shots=shots,
            metric=name,
            value=metric(name).value(predictions),
            n=len(episodes),
            seed=seed,
            selection="random",
            ensemble=1,
            decoding=decoding[metric(name).needs],
            checkpoint=model.checkpoint,
            step=model.step,
        )
        for name in task.metrics
    )
    kept = zip(episodes[:num_samples], predictions, strict=False)
    samples = tuple(Sample(task.name, shots, episode, prediction) for episode, prediction in kept)
    return Result(task.name, shots, rows, tuple(predictions), samples)


def evaluate_all(
    model: Flamingo,
    tasks: Sequence[Task],
    shots: Sequence[int],
    *,
    log: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> list[Result]:
    """Evaluates every task at every number of shots.

    Args:
        model: the model.
        tasks: the tasks.
        shots: numbers of support examples.
        log: gets a line per result.
        **settings: n, seed, split, batch_size, num_samples of `evaluate`.

    Raises:
        TaskError: a task is defined at none of the numbers of shots.
    """
    results = []
    for task in tasks:
        if not (defined := [number for number in shots if accepts(task, number)]):
            raise TaskError(f"task {task.name!r} is not defined at {list(shots)} shots. Choose others with --shots.")
        for number in defined:
            results.append(evaluate(model, task, shots=number, **settings))
            values = "  ".join(f"{row.metric} {row.value:.3f}" for row in results[-1].rows)
            log(f"{task.name:<18} {number:>2} shots  {values}")
    return results


def write_predictions(path: PathLike, results: Sequence[Result]) -> None:
    """Writes predictions.jsonl: one line per episode, with its prompt, answer, decoded text and scores."""
    lines = [
        json.dumps({"task": result.task, "shots": result.shots, **dataclasses.asdict(prediction)}, ensure_ascii=False)
        for result in results
        for prediction in result.predictions
    ]
    write_atomically(path, "\n".join(lines) + "\n")


def _predict(
    model: Flamingo, episodes: Sequence[Episode], *, generate: bool, score: bool, batch_size: int
) -> list[Prediction]:
    requests = [
        Request(
            model.read(episode.parts, masked=episode.masked),
            model.candidate_tokens(episode.candidates) if score else (),
        )
        for episode in episodes
    ]
    answers = model.engine.answer(requests, generate=generate, batch_size=batch_size)
    return [
        Prediction(
            query_id=episode.query_id,
            prompt=prompt_text(episode),
            answer=episode.answer,
            text=model.text(answer) if generate else None,
            candidates=episode.candidates if score else (),
            scores=answer.scores if score and episode.candidates else None,
        )
        for episode, answer in zip(episodes, answers, strict=True)
    ]


def prompt_text(episode: Episode) -> str:
    """An episode's prompt with `<image>` for each image."""
    return "".join(part if isinstance(part, str) else "<image>" for part in episode.parts)
