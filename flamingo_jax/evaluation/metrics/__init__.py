"""Metrics: functions of a task's answers at one number of shots (paper, Table 6).

A value is in 0..1, except `nll` (in nats) and `cider` (0..10, 1.0 = "100").

The values equal those of the benchmarks' official scripts for the same predictions:
tests/golden/metrics has the outputs of the scripts. Each file of this folder declares one or two
metrics, and METRICS lists them.
"""

from __future__ import annotations

from collections.abc import Mapping

from flamingo_jax.evaluation.metrics.cider import CIDER
from flamingo_jax.evaluation.metrics.circular_accuracy import CIRCULAR_ACCURACY
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit
from flamingo_jax.evaluation.metrics.exact_match import EXACT_MATCH, TOP1
from flamingo_jax.evaluation.metrics.gqa_accuracy import GQA_ACCURACY, GQA_DISTRIBUTION
from flamingo_jax.evaluation.metrics.ivqa_accuracy import IVQA_ACCURACY
from flamingo_jax.evaluation.metrics.okvqa_accuracy import OKVQA_ACCURACY
from flamingo_jax.evaluation.metrics.ranking import NLL, RANKING
from flamingo_jax.evaluation.metrics.rareact_mwap import RAREACT_MWAP
from flamingo_jax.evaluation.metrics.required import HiddenAnswersError, MissingResourceError
from flamingo_jax.evaluation.metrics.roc_auc import ROC_AUC
from flamingo_jax.evaluation.metrics.top1_top5 import TOP1_TOP5
from flamingo_jax.evaluation.metrics.visdial_ndcg import VISDIAL_NDCG
from flamingo_jax.evaluation.metrics.vqa_accuracy import VQA_ACCURACY
from flamingo_jax.evaluation.metrics.wups import WUPS
from flamingo_jax.evaluation.metrics.yes_or_no import (
    POPE_ACCURACY,
    POPE_F1,
    POPE_PRECISION,
    POPE_RECALL,
    POPE_YES,
)

__all__ = [
    "METRICS",
    "HiddenAnswersError",
    "Metric",
    "MissingResourceError",
    "Unit",
    "metric",
]

METRICS: Mapping[str, Metric] = {
    each.name: each
    for each in (
        *(EXACT_MATCH, TOP1, VQA_ACCURACY, OKVQA_ACCURACY, IVQA_ACCURACY, CIDER, WUPS),
        *(RANKING, TOP1_TOP5, VISDIAL_NDCG, ROC_AUC, RAREACT_MWAP, NLL),
        *(GQA_ACCURACY, GQA_DISTRIBUTION, CIRCULAR_ACCURACY),
        *(POPE_F1, POPE_ACCURACY, POPE_PRECISION, POPE_RECALL, POPE_YES),
    )
}


def metric(name: str) -> Metric:
    """Returns the metric called `name`.

    Raises:
        ValueError: no metric has this name.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}: expected one of {', '.join(sorted(METRICS))}.")
    return METRICS[name]
