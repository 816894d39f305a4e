"""Area under the ROC curve, the metric of HatefulMemes.

It is the probability that a positive query has a higher score than a negative one; equal scores
count one half.

Not scikit-learn's: that would be a large dependency for counting pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.core.finite import finite
from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area, 0..1, computed from the ranks (Mann-Whitney).

    Args:
        scores: float[n].
        positive: bool[n] with both values.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    finite(scores, "scores under the ROC curve")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    # equal scores share the mean of their ranks
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    num_positive = int(positive.sum())
    above = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * (len(positive) - num_positive)))


def probability(scores: Sequence[float], index: int) -> float:
    """Returns the probability of a candidate, from the log-likelihoods of all candidates."""
    values = np.asarray(scores, np.float64)
    weights = np.exp(values - values.max())
    return float(weights[index] / weights.sum())


def roc_auc(answers: Sequence[Answer]) -> float:
    """Returns the area under the ROC curve of the positive answer's probability, 0..1.

    Reads `scores`, `candidates`, `answer`, and `extra["positive"]`: the positive candidate, such as
    "yes".

    Raises:
        ValueError: there are no answers, they were not scored, the positive answer is no
            candidate, or only one of the two classes occurs.
    """
    if not answers:
        raise ValueError("roc_auc of no predictions is not defined: evaluate at least one episode.")
    values, labels = [], []
    for each in answers:
        scores, positive = (
            required.scored(each, "roc_auc"),
            required.extra(each, "roc_auc", "positive"),
        )
        candidates = each.episode.candidates
        if positive not in candidates:
            raise ValueError(
                f"roc_auc of query {each.episode.query_id!r}: the positive answer {positive!r} is "
                f"not among its candidates {candidates!r}."
            )
        values.append(probability(scores, candidates.index(positive)))
        labels.append(each.episode.answer == positive)
    if len(set(labels)) == 1:
        raise ValueError(
            f"roc_auc is not defined when all {len(labels)} queries have the same label (positive: "
            f"{labels[0]}): evaluate more of them."
        )
    return area(np.asarray(values), np.asarray(labels))


ROC_AUC = Metric(
    name="roc_auc",
    value=roc_auc,
    needs="scores",
    unit=Unit("ROC AUC x 100", of_each=False),
)
