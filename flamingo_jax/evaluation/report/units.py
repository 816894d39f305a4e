"""The unit in which a metric of a task is printed.

Results of benchmarks are printed like in papers: in percent, or 100 times the metric. Results of
the tiny world's tasks, and of metrics that METRICS lacks, are printed without a factor.
"""

from __future__ import annotations

from collections.abc import Iterable

from flamingo_jax.evaluation.metrics import METRICS, Unit
from flamingo_jax.evaluation.registry import BENCHMARKS, PAPER_BENCHMARKS
from flamingo_jax.evaluation.report.published import benchmark_of


def is_benchmark(task: str, metrics: Iterable[str]) -> bool:
    """Returns True if a task is a benchmark, or has the metric of one.

    Args:
        task: name of the task.
        metrics: names of its metrics.
    """
    known = [METRICS[name] for name in metrics if name in METRICS]
    return _is_listed(task) or any(each.plain_unit is None for each in known)


def unit(task: str, metric: str) -> Unit:
    """Returns the unit in which a metric of a task is printed.

    Args:
        task: name of the task.
        metric: name of the metric; METRICS lacks those of embedding comparisons.
    """
    if metric not in METRICS:
        return Unit(metric.replace("_", " "), factor=1.0, decimals=2, of_each=False)
    found = METRICS[metric]
    plain = found.plain_unit
    return found.unit if plain is None or _is_listed(task) else plain


def _is_listed(task: str) -> bool:
    return task in BENCHMARKS or benchmark_of(task) in PAPER_BENCHMARKS
