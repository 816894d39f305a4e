"""Predictions as the file that EvalAI takes, for splits whose answers are not public.

Test-dev of VQAv2 and VizWiz.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.paths import PathLike, write_atomically
from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required


def entries(
    predictions: Sequence[Answer], all_questions: Sequence[int | str] = ()
) -> list[dict[str, Any]]:
    """The list of answers, in the order of the predictions.

    Reads `text`, and `extra`: "image" (VizWiz: the file's name) or else "question_id" (VQAv2).

    Args:
        predictions: one for each question that was asked.
        all_questions: the questions that the server expects answers to; those that were not asked
            get an empty one. VQAv2's server wants all of test2015 when test-dev is scored.

    Raises:
        ValueError: there are no predictions, nothing was decoded, a key is missing, or a question
            is answered twice.
    """
    if not predictions:
        raise ValueError(
            "a submission of no predictions would be empty: evaluate at least one episode."
        )
    key = "image" if "image" in predictions[0].episode.extra else "question_id"
    found: dict[int | str, str] = {}
    for each in predictions:
        question = required.extra(each, "submission", key)
        if question in found:
            raise ValueError(
                f"submission: {key} {question!r} is answered twice. Evaluate each query once."
            )
        found[question] = required.decoded(each, "submission").strip()
    found |= {question: "" for question in all_questions if question not in found}
    return [{key: question, "answer": answer} for question, answer in found.items()]


def write(
    path: PathLike, predictions: Sequence[Answer], all_questions: Sequence[int | str] = ()
) -> None:
    """Writes `entries` as JSON; the file appears complete or not at all.

    Raises:
        ValueError: see `entries`.
    """
    write_atomically(path, json.dumps(entries(predictions, all_questions)).encode())
