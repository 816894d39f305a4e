"""Metrics.

Each is a function of the predictions of one task at one number of shots, to a value in 0..1 (`nll`:
in nats; `cider`: 0..10, 1.0 = "100").

They equal the benchmarks' official scripts on the same predictions: tests/golden/metrics holds what
those gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import ptb, wordnet
from flamingo_jax.evaluation.metrics.cider import cider
from flamingo_jax.evaluation.metrics.classification import top1_top5
from flamingo_jax.evaluation.metrics.exact_match import exact_match, top1
from flamingo_jax.evaluation.metrics.ivqa import ivqa_accuracy
from flamingo_jax.evaluation.metrics.needs import HiddenAnswersError, MissingResourceError
from flamingo_jax.evaluation.metrics.okvqa import okvqa_accuracy
from flamingo_jax.evaluation.metrics.ranking import answer_nll, ranking
from flamingo_jax.evaluation.metrics.rareact import rareact_mwap
from flamingo_jax.evaluation.metrics.roc_auc import roc_auc
from flamingo_jax.evaluation.metrics.visdial import visdial_ndcg
from flamingo_jax.evaluation.metrics.vqa import vqa_accuracy
from flamingo_jax.evaluation.metrics.wups import check as check_wups
from flamingo_jax.evaluation.metrics.wups import wups

__all__ = [
    "METRICS",
    "HiddenAnswersError",
    "Metric",
    "MissingResourceError",
    "metric",
]


def _nothing() -> None:
    """Most metrics need nothing but the predictions."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, and what it needs.

    Attributes:
        value: predictions -> value of the whole task.
        needs: of the model: "generation" (open-ended: the decoded text) or "scores" (close-ended: a
            score of each candidate).
        check: of the machine: raises MissingResourceError, which names what to install. To be
            called before hours of decoding, not after.
    """

    value: Callable[[Sequence[Answer]], float]
    needs: Literal["generation", "scores"]
    check: Callable[[], None] = _nothing


METRICS: Mapping[str, Metric] = {
    "exact_match": Metric(exact_match, needs="generation"),
    "top1": Metric(top1, needs="generation"),
    "vqa_accuracy": Metric(vqa_accuracy, needs="generation"),
    "okvqa_accuracy": Metric(okvqa_accuracy, needs="generation", check=wordnet.check),
    "ivqa_accuracy": Metric(ivqa_accuracy, needs="generation"),
    "cider": Metric(cider, needs="generation", check=ptb.check),
    "wups": Metric(wups, needs="generation", check=check_wups),
    "ranking": Metric(ranking, needs="scores"),
    "top1_top5": Metric(top1_top5, needs="scores"),
    "visdial_ndcg": Metric(visdial_ndcg, needs="scores"),
    "roc_auc": Metric(roc_auc, needs="scores"),
    "rareact_mwap": Metric(rareact_mwap, needs="scores"),
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
