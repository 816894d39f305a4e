"""The file of answers that EvalAI takes for splits with hidden answers.

These are test-dev of VQAv2, VizWiz, and the test split of NoCaps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.paths import PathLike, write_atomically
from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required

# Name of the query in an entry -> name of its answer: VizWiz (a file), NoCaps, VQAv2.
KEYS = {"image": "answer", "image_id": "caption", "question_id": "answer"}


def entries(
    answers: Sequence[Answer], all_questions: Sequence[int | str] = ()
) -> list[dict[str, Any]]:
    """Returns the entries of the file, in the order of the answers.

    Reads `text`, and `extra`: the first name of KEYS that it has says which answer it is.

    Args:
        answers: one for each question that was asked.
        all_questions: the questions that the server expects answers to; those that were not asked
            get an empty answer. VQAv2's server expects all of test2015, to score test-dev.

    Raises:
        ValueError: there are no answers, nothing was decoded, a key is missing, or a question
            is answered twice.
    """
    if not answers:
        raise ValueError(
            "a submission of no predictions would be empty: evaluate at least one episode."
        )
    key = next((name for name in KEYS if name in answers[0].episode.extra), "question_id")
    found: dict[int | str, str] = {}
    for each in answers:
        question = required.extra(each, "submission", key)
        if question in found:
            raise ValueError(
                f"submission: {key} {question!r} is answered twice. Evaluate each query once."
            )
        found[question] = required.decoded(each, "submission").strip()
    found |= {question: "" for question in all_questions if question not in found}
    return [{key: question, KEYS[key]: answer} for question, answer in found.items()]


def write(
    path: PathLike, answers: Sequence[Answer], all_questions: Sequence[int | str] = ()
) -> None:
    """Writes `entries` as JSON; the file appears complete or not at all.

    Raises:
        ValueError: see `entries`.
    """
    write_atomically(path, json.dumps(entries(answers, all_questions), allow_nan=False).encode())
