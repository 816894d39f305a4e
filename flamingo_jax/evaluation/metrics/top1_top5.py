"""The metric of Kinetics: the mean of top-1 and top-5 accuracy. ImageNet has `ranking`."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def rank(scores: Sequence[float], index: int) -> int:
    """Returns the rank of a candidate, from 0; of equal scores the earlier one is first."""
    better = sum(score > scores[index] for score in scores)
    return better + sum(score == scores[index] for score in scores[:index])


def top1_top5(answers: Sequence[Answer]) -> float:
    """Returns (top-1 accuracy + top-5 accuracy) / 2, 0..1.

    Reads `scores`, `candidates`, `answer`.

    Raises:
        ValueError: there are no answers, they were not scored, or a right answer is not a
            candidate.
    """
    ranks = [
        rank(required.scored(each, "top1_top5"), required.position(each, "top1_top5"))
        for each in answers
    ]
    return required.mean([((place < 1) + (place < 5)) / 2 for place in ranks], "top1_top5")


TOP1_TOP5 = Metric(
    name="top1_top5",
    value=top1_top5,
    needs="scores",
    unit=Unit("mean of top-1 and top-5 accuracy, %"),
)
