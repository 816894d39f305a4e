"""How each metric is shown.

Its title, its unit as papers print it, and whether it tells of a single answer how right it is.

Metrics are fractions (CIDEr-D: 0..10, and the papers' 100 points are 1.0). Results of benchmarks
are printed as papers do; those of the tiny world's tasks, and whatever has no entry here, as they
are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from flamingo_jax.evaluation.report.published import BENCHMARKS, benchmark_of


@dataclasses.dataclass(frozen=True)
class Unit:
    """How values of a metric are shown.

    Attributes:
        title: name and unit.
        factor: what values are multiplied by.
        decimals: digits after the point.
        of_each: whether it is the mean over queries of how right each answer is, in 0..1; CIDEr,
            ROC AUC, mWAP and nll are not.
    """

    title: str
    factor: float = 100.0
    decimals: int = 1
    of_each: bool = True

    @property
    def name(self) -> str:
        """The title without the unit, such as "VQA accuracy"."""
        return self.title.removesuffix(", %").removesuffix(" x 100")

    def text(self, value: float | None) -> str:
        """A value, such as "57.3"; "-" if there is none."""
        return "-" if value is None else f"{value * self.factor:.{self.decimals}f}"


_BENCHMARKS: Mapping[str, Unit] = {
    "vqa_accuracy": Unit("VQA accuracy, %"),
    "okvqa_accuracy": Unit("VQA accuracy, %"),
    "ivqa_accuracy": Unit("iVQA accuracy, %"),
    "top1": Unit("top-1 accuracy, %"),
    "top1_top5": Unit("mean of top-1 and top-5 accuracy, %"),
    "cider": Unit("CIDEr-D x 100", of_each=False),
    "visdial_ndcg": Unit("NDCG x 100"),
    "wups": Unit("WUPS x 100"),
    "roc_auc": Unit("ROC AUC x 100", of_each=False),
    "rareact_mwap": Unit("mWAP, %", of_each=False),
}
_PLAIN: Mapping[str, Unit] = {
    "exact_match": Unit("exact match", factor=1.0, decimals=2),
    "ranking": Unit("ranking", factor=1.0, decimals=2),
    "nll": Unit("nll", factor=1.0, decimals=2, of_each=False),
}


def is_benchmark(task: str, metrics: Iterable[str]) -> bool:
    """Whether a task's results are shown in the units of papers.

    It is one of the paper's benchmarks, or has one of their metrics.

    Args:
        task: its name.
        metrics: names of its metrics.
    """
    return benchmark_of(task) in BENCHMARKS or any(name in _BENCHMARKS for name in metrics)


def unit(task: str, metric: str) -> Unit:
    """How a metric of a task is shown.

    Args:
        task: its name; on the paper's benchmarks, `ranking` is a top-1 accuracy in percent.
        metric: name from `evaluation.metrics.METRICS`.
    """
    if metric in _BENCHMARKS:
        return _BENCHMARKS[metric]
    if benchmark_of(task) in BENCHMARKS and metric in ("exact_match", "ranking"):
        return Unit("top-1 accuracy, %" if metric == "ranking" else "exact match, %")
    return _PLAIN.get(metric, Unit(metric.replace("_", " "), factor=1.0, decimals=2, of_each=False))
