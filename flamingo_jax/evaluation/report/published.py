"""Published results by task: of Flamingo, OpenFlamingo and IDEFICS.

The numbers are in `evaluation/benchmarks`, in the unit of the publications: percent, and 100 times
CIDEr, NDCG, WUPS and ROC AUC. Those of Flamingo are from Tables 1, 7, 9 and 11. Tables 2, 3 and 10
are in `published_fine_tuning` and `published_ablations`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Series
from flamingo_jax.evaluation.registry import PAPER_BENCHMARKS


@dataclasses.dataclass(frozen=True)
class Publication:
    """Where numbers are published, and what was different there."""

    where: str
    caveat: str = ""


SOURCES: Mapping[str, Publication] = {
    "Flamingo": Publication(
        "Flamingo, arXiv 2204.14198 v2, Table 1 (ImageNet and Kinetics700: Table 7)"
    ),
    "OpenFlamingo": Publication(
        "OpenFlamingo, arXiv 2308.01390 v2, Table 11 (RICES: Table 12)",
        "means of 3 seeds; images of 224 x 224 pixels",
    ),
    "IDEFICS": Publication(
        "IDEFICS, the models' card", "images of 224 x 224 pixels; COCO is in its training data"
    ),
}


CONTRASTIVE_SOURCE = (
    "Flamingo, arXiv 2204.14198 v2, Table 9 and, NFNet-F0 with BERT-mini on parts of the data, "
    "Table 11; zero-shot classification: Table 7"
)


def benchmark_of(task: str) -> str:
    """Returns the name of the benchmark with the published results for a task.

    "vqav2" for "vqav2", and for "vqav2_val", its labelled split.

    Args:
        task: name of a task, of this package or of a user.
    """
    return task if task in PAPER_BENCHMARKS else task.removesuffix("_val")


def series(benchmark: str) -> Sequence[Series]:
    """Returns the published results on a benchmark, small models first; () if there are none.

    Args:
        benchmark: name of the benchmark, such as "coco".
    """
    return PAPER_BENCHMARKS[benchmark].published if benchmark in PAPER_BENCHMARKS else ()


def contrastive(task: str) -> dict[str, Mapping[str, float]]:
    """Returns the published results of contrastive models: {model: {metric: percent}}.

    {} for a task that the paper does not have.

    Args:
        task: name of a zero-shot classification or retrieval task.
    """
    if (benchmark := contrastive_benchmark(task)) is None or not benchmark.contrastive:
        return {}
    first = benchmark.contrastive.metrics[0]
    without_support: dict[str, Mapping[str, float]] = {
        each.model: {first: each.values[0]} for each in benchmark.published if not each.selection
    }
    return {**without_support, **benchmark.contrastive.published}


def contrastive_benchmark(task: str) -> Benchmark | None:
    """Returns the benchmark of a zero-shot classification or retrieval task.

    None for a task that the paper does not have.
    """
    for name, benchmark in PAPER_BENCHMARKS.items():
        if benchmark.contrastive and task == f"{name}_{benchmark.contrastive.kind}":
            return benchmark
    return None


def overall(values: Mapping[str, float]) -> float | None:
    """Returns the overall score of the ablations (paper, Table 3).

    It is the mean over the five DEV benchmarks of the value in percent of the fine-tuned state of
    the art. On all rows of Table 10 it differs from the printed score by at most 0.17; the paper
    does not say why.

    Args:
        values: benchmark -> value, in the unit of the publications.

    Returns:
        The score in percent; None if one of the five is missing.
    """
    best = {
        name: listed.fine_tuned_sota
        for name, listed in PAPER_BENCHMARKS.items()
        if listed.is_dev and listed.fine_tuned_sota
    }
    if not best.keys() <= values.keys():
        return None
    return sum(100 * values[name] / most for name, most in best.items()) / len(best)
