"""NDCG of VisDial, as the official starter code computes it (batra-mlp-lab/visdial-challenge-starter-pytorch, metrics.py).

Several of the 100 candidate answers to a question may be right: annotators say how relevant each
one is. Let k candidates have a relevance above 0. The model's first k candidates are worth the sum
of relevance / log2(rank + 1), over what the best k would be worth. The order of equal scores is not
defined in the official code (its sort is not stable); here the earlier candidate comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """The normalised discounted cumulative gain of one question, 0..1.

    Args:
        scores: the model's, one for each candidate.
        relevance: the annotators', in the same order; at least one is above 0.
    """
    gains = np.asarray(relevance, np.float64)
    num_relevant = int((gains != 0).sum())
    discounts = 1 / np.log2(np.arange(num_relevant) + 2.0)
    ranked = gains[np.argsort(-np.asarray(scores, np.float64), kind="stable")[:num_relevant]]
    best = np.sort(gains)[::-1][:num_relevant]
    return float(ranked @ discounts / (best @ discounts))


def visdial_ndcg(predictions: Sequence[Answer]) -> float:
    """The mean NDCG, 0..1; one round of each dialogue has dense annotations.

    Reads `scores`, and `extra["relevance"]`: `gt_relevance` of the dense annotations, one number
    for each candidate.

    Raises:
        ValueError: there are no predictions, they were not scored, or a relevance is missing, of
            another length, or all 0.
    """
    values = []
    for each in predictions:
        scores, relevance = (
            required.scored(each, "visdial_ndcg"),
            required.extra(each, "visdial_ndcg", "relevance"),
        )
        if len(relevance) != len(scores) or not any(relevance):
            raise ValueError(
                f"visdial_ndcg of query {each.episode.query_id!r}: expected a relevance for each of "
                f"its {len(scores)} candidates, at least one above 0; got {len(relevance)}, "
                f"{sum(map(bool, relevance))} above 0. Check the dense annotations."
            )
        values.append(ndcg(scores, relevance))
    return required.mean(values, "visdial_ndcg")


VISDIAL_NDCG = Metric(
    name="visdial_ndcg", value=visdial_ndcg, needs="scores", unit=Unit("NDCG x 100")
)
