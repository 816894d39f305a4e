"""Kinetics' metric: the mean of top-1 and top-5 accuracy. ImageNet's top-1 is `ranking`."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def rank(scores: Sequence[float], index: int) -> int:
    """The rank of a candidate, from 0; of equal scores the earlier candidate comes first."""
    better = sum(score > scores[index] for score in scores)
    return better + sum(score == scores[index] for score in scores[:index])


def top1_top5(predictions: Sequence[Answer]) -> float:
    """(top-1 accuracy + top-5 accuracy) / 2, 0..1.

    Reads `scores`, `candidates`, `answer`.

    Raises:
        ValueError: there are no predictions, they were not scored, or an answer is not among its
            candidates.
    """
    ranks = [
        rank(required.scored(each, "top1_top5"), required.position(each, "top1_top5"))
        for each in predictions
    ]
    return required.mean([((place < 1) + (place < 5)) / 2 for place in ranks], "top1_top5")


TOP1_TOP5 = Metric(
    name="top1_top5",
    value=top1_top5,
    needs="scores",
    unit=Unit("mean of top-1 and top-5 accuracy, %"),
)
