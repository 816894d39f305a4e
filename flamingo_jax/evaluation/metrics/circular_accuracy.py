"""Circular accuracy of MMBench: a question is right if it is right in all rotations of its options.

The official code takes the rows of a file that have the same question, in any number.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit
from flamingo_jax.evaluation.metrics.ranking import is_first


def circular_accuracy(answers: Sequence[Answer]) -> float:
    """Returns the fraction of questions whose rotations are all right, 0..1.

    Reads `scores`, and `extra["question"]`: the question of which a query is a rotation.

    Raises:
        ValueError: there are no answers, they were not scored, or `question` is missing.
    """
    are_right: dict[str, bool] = {}
    for each in answers:
        is_right = is_first(each, "circular_accuracy")
        question = required.extra(each, "circular_accuracy", "question")
        are_right[question] = are_right.get(question, True) and is_right
    return required.mean(list(are_right.values()), "circular_accuracy")


CIRCULAR_ACCURACY = Metric(
    name="circular_accuracy",
    value=circular_accuracy,
    needs="scores",
    unit=Unit("circular accuracy, %", of_each=False),
)
