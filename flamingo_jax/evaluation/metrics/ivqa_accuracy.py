"""iVQA accuracy, as the official script computes it (antoyang/just-ask, util.py).

Five annotators answered each question. An answer is right if two of them gave it, and half right if
one did: min(matches / 2, 1). The official model chooses from a vocabulary; here a decoded text is
compared as a string, in lower case and without outer and double spaces.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Returns the accuracy of one answer: 0, 0.5 or 1."""
    answer, *annotated = (" ".join(text.lower().split()) for text in (answer, *annotated))
    return min(annotated.count(answer) / 2, 1.0)


def ivqa_accuracy(answers: Sequence[Answer]) -> float:
    """Returns the mean accuracy, 0..1.

    Reads `text`, and `references`: answer1..answer5 of the annotations, with repetitions.

    Raises:
        ValueError: there are no answers, nothing was decoded, or references are missing.
    """
    values = [
        accuracy(
            required.decoded(each, "ivqa_accuracy"), required.references(each, "ivqa_accuracy")
        )
        for each in answers
    ]
    return required.mean(values, "ivqa_accuracy")


IVQA_ACCURACY = Metric(
    name="ivqa_accuracy",
    value=ivqa_accuracy,
    needs="generation",
    unit=Unit("iVQA accuracy, %"),
)
