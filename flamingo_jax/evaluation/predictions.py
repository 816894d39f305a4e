"""Writes answers to files: predictions.jsonl, and the files that benchmarks' servers take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

from flamingo_jax.core.paths import (
    Path,
    PathError,
    PathLike,
    parse_json,
    regular,
    write_atomically,
)
from flamingo_jax.evaluation.episode import Answer, Episode
from flamingo_jax.evaluation.metrics import submission
from flamingo_jax.evaluation.task import Task


def write(path: PathLike, answers: Sequence[Answer]) -> None:
    """Writes predictions.jsonl, one line per answer.

    Raises:
        PathError: the file cannot be written.
    """
    lines = [json.dumps(answer.line(), ensure_ascii=False, allow_nan=False) for answer in answers]
    write_atomically(path, "\n".join(lines) + "\n")


def read(path: PathLike) -> list[Answer]:
    """Reads a predictions.jsonl; of each prompt only its text is known, not its images.

    Raises:
        PathError: there is no such file, or a line is damaged.
    """
    file = Path(path)
    if not file.exists():
        raise PathError(f"There is no file {file}. Give the output of an evaluation.")
    answers = []
    with regular(file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = parse_json(line.decode())
                scores = found["scores"]
                episode = Episode(
                    parts=(found["prompt"],),
                    candidates=(),  # of many candidates the file has the best only
                    answer=found["answer"],
                    query_id=found["query_id"],
                    references=tuple(found["references"]),
                    extra=found["extra"],
                )
                scores = None if scores is None else tuple(scores)
                answers.append(
                    Answer(found["task"], found["shots"], episode, found["text"], scores)
                )
            except (KeyError, TypeError, ValueError) as error:
                raise PathError(f"{file}, line {number} is damaged: {error!r}.") from error
    return answers


def write_submissions(
    directory: PathLike, answers: Sequence[Answer], tasks: Sequence[Task]
) -> list[Path]:
    """Writes TASK-SHOTS.json for each task whose right answers are hidden; returns the files.

    The files have the form that the benchmark's server takes.

    Args:
        directory: of the files; it is made if it does not exist.
        answers: the answers to all tasks.
        tasks: the tasks; `submission_questions` of a task are the questions that its server expects
            answers to, asked or not.

    Raises:
        ValueError: the answers do not name their questions.
        PathError: a file cannot be written.
    """
    by_name = {task.name: task for task in tasks}
    files = []
    for (name, shots), members in _by_task_and_shots(answers):
        if answers_are_hidden(members):
            file = Path(directory) / f"{name}-{shots}.json"
            submission.write(file, members, by_name[name].submission_questions())
            files.append(file)
    return files


def answers_are_hidden(answers: Sequence[Answer]) -> bool:
    """Returns True if no right answer is known, as in test-dev of VQAv2."""
    return not any(answer.episode.answer or answer.episode.references for answer in answers)


def first_of_each(answers: Sequence[Answer], count: int) -> list[Answer]:
    """Returns the first `count` answers of each task at each number of shots."""
    return [answer for _, members in _by_task_and_shots(answers) for answer in members[:count]]


def _by_task_and_shots(
    answers: Sequence[Answer],
) -> Iterator[tuple[tuple[str, int], list[Answer]]]:
    """Yields ((task, shots), its answers); `answers` has them one after another."""
    for key, members in itertools.groupby(answers, lambda answer: (answer.task, answer.shots)):
        yield key, list(members)
