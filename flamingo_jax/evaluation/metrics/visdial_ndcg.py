"""NDCG of VisDial, as the official starter code computes it.

The code is batra-mlp-lab/visdial-challenge-starter-pytorch, metrics.py. Several of the 100
candidate answers to a question may be right: annotators rated the relevance of each. Let k
candidates have a relevance above 0. The value of a ranking is the sum of relevance / log2(rank + 1)
over its first k candidates, divided by the value of the best ranking. The official code does not
define the order of equal scores (its sort is not stable); here the earlier candidate is first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.core.finite import finite
from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Returns the normalised discounted cumulative gain of one question, 0..1.

    Args:
        scores: the model's score of each candidate.
        relevance: the annotators' rating of each candidate; at least one is above 0.

    Raises:
        NonFiniteError: a score or a rating is NaN or infinite.
    """
    finite(scores, "scores of candidates")
    ratings = "ratings of the annotators"
    gains = finite(np.asarray(relevance, np.float64), ratings, why=lambda: "Check their file.")
    num_relevant = int((gains != 0).sum())
    discounts = 1 / np.log2(np.arange(num_relevant) + 2.0)
    ranked = gains[np.argsort(-np.asarray(scores, np.float64), kind="stable")[:num_relevant]]
    best = np.sort(gains)[::-1][:num_relevant]
    return float(ranked @ discounts / (best @ discounts))


def visdial_ndcg(answers: Sequence[Answer]) -> float:
    """Returns the mean NDCG, 0..1; one round of each dialogue has dense annotations.

    Reads `scores`, and `extra["relevance"]`: `gt_relevance` of the dense annotations, one number
    for each candidate.

    Raises:
        ValueError: there are no answers, they were not scored, or the relevance is missing, has
            another length, or is 0 for all candidates.
    """
    values = []
    for each in answers:
        scores, relevance = (
            required.scored(each, "visdial_ndcg"),
            required.extra(each, "visdial_ndcg", "relevance"),
        )
        if len(relevance) != len(scores) or not any(relevance):
            raise ValueError(
                f"visdial_ndcg of query {each.episode.query_id!r}: expected a relevance for each "
                f"of its {len(scores)} candidates, at least one above 0; got {len(relevance)}, "
                f"{sum(map(bool, relevance))} above 0. Check the dense annotations."
            )
        values.append(ndcg(scores, relevance))
    return required.mean(values, "visdial_ndcg")


VISDIAL_NDCG = Metric(
    name="visdial_ndcg", value=visdial_ndcg, needs="scores", unit=Unit("NDCG x 100")
)
