"""Runs tasks: episodes -> prompts -> answers -> metrics -> rows of results.json.

Open-ended metrics (exact match of the decoded text) and close-ended ones (ranking of the
candidates) share one prefill of the prompt. Queries, support examples and answers depend on the
protocol alone, not on the batch size or on the devices. With a directory for its journals, a
stopped run goes on from the queries that it had finished.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

import tqdm

from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.rejected import BrokenDataset
from flamingo_jax.evaluation.answer import answer
from flamingo_jax.evaluation.episode import Answer, Episode, Row
from flamingo_jax.evaluation.journal import Journal
from flamingo_jax.evaluation.metrics import Metric, MissingResourceError, metric
from flamingo_jax.evaluation.predictions import answers_are_hidden
from flamingo_jax.evaluation.task import HasSetting, Task, TaskError
from flamingo_jax.inference.model import EXPECTED_ERRORS as ERRORS_OF_INFERENCE
from flamingo_jax.inference.model import Flamingo

# What a program that evaluates shows its user as one message, without a traceback.
EXPECTED_ERRORS = (*ERRORS_OF_INFERENCE, BrokenDataset, TaskError, MissingResourceError)

# The engine's settings that decide how fast an answer is computed, but not which answer.
_SHAPES = (
    "lengths",
    "num_images",
    "images_per_pass",
    "candidates_per_pass",
    "latents_megabytes",
    "prefix_megabytes",
    "xattn_chunk",
)


def evaluate(
    model: Flamingo,
    task: Task,
    *,
    shots: int,
    batch_size: int = 100,
    journals: PathLike | None = None,
    model_hash: str = "",
    progress: bool = False,
) -> tuple[list[Row], list[Answer]]:
    """Evaluates a model on one task at one number of shots.

    Args:
        model: the model; its engine's config says how it decodes and scores.
        task: the task, with its protocol.
        shots: support examples per query.
        batch_size: prompts answered together.
        journals: directory of TASK-SHOTS.jsonl, the answers so far, which are not asked for again.
            None: nothing is stored.
        model_hash: `core.fingerprint` of the model's weights, for the journal.
        progress: whether a terminal shows a bar with the time left.

    Returns:
        A row per metric of the task, and all answers. There is no row if the right answers are
        hidden.

    Raises:
        TaskError: the task cannot make the episodes.
        ValueError: a metric is unknown.
        PromptError: a prompt cannot be read, or is too long.
        PathError: the journal cannot be written.
        NonFiniteError: the model gave NaN or infinity.
    """
    needs = {metric(name).needs for name in task.metrics}
    after_image = model.tokenizer.markers.after_image
    episodes = [each.after_images(after_image) for each in episodes_of(task, shots)]
    settings = dataclasses.asdict(model.engine.config).items()
    engine = model.engine
    header = {
        "model": model_hash,
        "images": [engine.image_size, engine.image_fit, engine.background],
        "checkpoint": model.checkpoint,
        "step": model.step,
        "settings": {name: value for name, value in settings if name not in _SHAPES},
    }
    file = None if journals is None else Path(journals) / f"{task.name}-{shots}.jsonl"
    journal = Journal(file, header)
    hidden = not (progress and sys.stderr.isatty())
    with tqdm.tqdm(
        total=len(episodes),
        desc=f"{task.name} {shots} shots",
        unit="query",
        disable=hidden,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        answers = answer(
            model,
            episodes,
            journal,
            task=task.name,
            shots=shots,
            generate="generation" in needs,
            score="scores" in needs,
            batch_size=batch_size,
            done=bar.update,
        )
    if answers_are_hidden(answers):
        return [], answers
    return _rows(model, task, answers, shots), answers


def shots_of(task: Task) -> list[int]:
    """Returns the numbers of shots of a task's protocol at which the task is defined.

    Raises:
        TaskError: there is none.
    """
    if not (defined := [number for number in task.protocol.shots if task.accepts(number)]):
        raise TaskError(
            f"task {task.name!r} is not defined at {list(task.protocol.shots)} shots. Choose "
            "other numbers of shots."
        )
    return defined


def episodes_of(task: Task, shots: int) -> Sequence[Episode]:
    """Returns the episodes of a task, at least one.

    Raises:
        TaskError: the task cannot make them.
    """
    try:
        episodes = list(task.episodes(shots))
    except ValueError as error:
        raise TaskError(str(error)) from error
    if not episodes:
        raise TaskError(
            f"task {task.name!r} at {shots} shots gave no episodes; expected {task.protocol.n}. "
            "Check its data."
        )
    return episodes


def check_metrics(tasks: Sequence[Task]) -> None:
    """Checks that this machine has all that the metrics of the tasks need.

    It is called before hours of decoding, not after.

    Raises:
        MissingResourceError: a program, package or file is missing; the message says how to install
            it.
        ValueError: a metric is unknown.
    """
    for name in dict.fromkeys(name for task in tasks for name in task.metrics):
        metric(name).check()


def of_groups(metric: Metric, answers: Sequence[Answer]) -> dict[str, float] | None:
    """Returns the metric on each group of queries that a benchmark names; None without groups.

    Args:
        metric: of the benchmark.
        answers: of all queries; `extra["groups"]` has the groups of each.
    """
    members: dict[str, list[Answer]] = {}
    for each in answers:
        for name in each.episode.extra.get("groups", ()):
            members.setdefault(name, []).append(each)
    return {name: metric.value(found) for name, found in sorted(members.items())} or None


def _rows(model: Flamingo, task: Task, answers: Sequence[Answer], shots: int) -> list[Row]:
    decoding = {"generation": model.engine.config.decoding, "scores": "log_likelihood"}
    protocol = task.protocol
    setting = task.setting(shots) if isinstance(task, HasSetting) else {"split": protocol.split}
    return [
        Row(
            task=task.name,
            shots=shots,
            metric=name,
            value=metric(name).value(answers),
            groups=of_groups(metric(name), answers),
            n=len(answers),
            seed=protocol.seed,
            selection=protocol.selection,
            ensemble=protocol.ensemble,
            decoding=decoding[metric(name).needs],
            checkpoint=model.checkpoint,
            step=model.step,
            **setting,
        )
        for name in task.metrics
    ]


def evaluate_all(
    model: Flamingo,
    tasks: Sequence[Task],
    *,
    batch_size: int = 100,
    journals: PathLike | None = None,
    progress: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], list[Answer]]:
    """Evaluates every task at every number of shots of its protocol.

    Args:
        model: the model.
        tasks: the tasks.
        batch_size: prompts answered together.
        journals: as in `evaluate`.
        progress: as in `evaluate`.
        log: called with a line per task and number of shots.

    Returns:
        The rows and the answers of all, in the order of the tasks and of their shots.

    Raises:
        TaskError: a task is not defined at any of the numbers of shots.
        NonFiniteError: a weight, or a number that the model gave, is NaN or infinite.
    """
    model.engine.compiled.check_weights()
    model_hash = "" if journals is None else fingerprint(model.engine.params)
    rows: list[Row] = []
    answers: list[Answer] = []
    for task in tasks:
        for shots in shots_of(task):
            found, answered = evaluate(
                model,
                task,
                shots=shots,
                batch_size=batch_size,
                journals=journals,
                model_hash=model_hash,
                progress=progress,
            )
            rows += found
            answers += answered
            values = "  ".join(f"{row.metric} {row.value:.3f}" for row in found)
            log(
                f"{task.name:<18} {shots:>2} shots  "
                f"{values or 'answered; the right answers are hidden'}"
            )
    return rows, answers
