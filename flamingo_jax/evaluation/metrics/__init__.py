"""Metrics: each is a function of the predictions of one task at one number of shots, to a value in 0..1 (`nll`: in nats)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from flamingo_jax.evaluation.metrics.exact_match import exact_match
from flamingo_jax.evaluation.metrics.prediction import Prediction
from flamingo_jax.evaluation.metrics.ranking import answer_nll, ranking

__all__ = ["METRICS", "Metric", "Prediction", "metric"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, and what it needs the model to do.

    Attributes:
        value: predictions -> value of the whole task.
        needs: "generation" (open-ended: the decoded text) or "scores" (close-ended: a score of each candidate).
    """

    value: Callable[[Sequence[Prediction]], float]
    needs: Literal["generation", "scores"]


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(exact_match, needs="generation"),
    "ranking": Metric(ranking, needs="scores"),
    "nll": Metric(answer_nll, needs="scores"),
}


def metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}: expected one of {', '.join(sorted(METRICS))}.")
    return METRICS[name]
