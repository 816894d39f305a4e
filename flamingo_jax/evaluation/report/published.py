"""Published results that are not of one benchmark, and those of `evaluation/benchmarks` by name.

Flamingo (Tables 1, 7, 9, 11), OpenFlamingo, IDEFICS.

All are in the unit of the publications: percent, and 100 times CIDEr, NDCG, WUPS and ROC AUC.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluation import registry
from flamingo_jax.evaluation.benchmarks.benchmark import SHOTS, Benchmark, Series

__all__ = [
    "BENCHMARKS",
    "SHOTS",
    "SOURCES",
    "Series",
    "benchmark_of",
    "contrastive",
    "overall",
    "series",
]

# The paper's, in the order of its tables; without the labelled variants of two of them.
BENCHMARKS: Mapping[str, Benchmark] = {
    name: benchmark for name, benchmark in registry.BENCHMARKS.items() if not benchmark.data
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where numbers stand, and what was different there."""

    where: str
    caveat: str = ""


SOURCES: Mapping[str, Source] = {
    "Flamingo": Source(
        "Flamingo, arXiv 2204.14198 v2, Table 1 (ImageNet and Kinetics700: Table 7)"
    ),
    "OpenFlamingo": Source(
        "OpenFlamingo, arXiv 2308.01390 v2, Table 11 (RICES: Table 12)",
        "means of 3 seeds; images of 224 x 224 pixels",
    ),
    "IDEFICS": Source(
        "IDEFICS, the models' card", "images of 224 x 224 pixels; COCO is in its training data"
    ),
}


CONTRASTIVE_SOURCE = "Flamingo, arXiv 2204.14198 v2, Table 9 and, NFNet-F0 with BERT-mini on parts of the data, Table 11; zero-shot classification: Table 7"
_FINAL = "contrastive NFNet-F6"
_ABLATIONS = (
    "NFNet-F0, LTIP",
    "NFNet-F0, ALIGN",
    "NFNet-F0, accumulation",
    "NFNet-F0, data merged",
    "NFNet-F0, round-robin",
)
# Recall at 1, 5, 10 of image to text, then of text to image; Table 11 has COCO alone.
_RETRIEVAL: Mapping[str, Mapping[str, Sequence[float]]] = {
    "flickr30k_retrieval": {_FINAL: (89.3, 98.8, 99.7, 79.5, 95.3, 97.9)},
    "coco_retrieval": {
        _FINAL: (65.9, 87.3, 92.9, 48.0, 73.3, 82.1),
        _ABLATIONS[0]: (38.6, 66.4, 76.4, 31.1, 57.4, 68.4),
        _ABLATIONS[1]: (32.2, 58.9, 70.6, 23.7, 47.7, 59.4),
        _ABLATIONS[2]: (42.3, 68.3, 78.4, 31.5, 58.3, 69.0),
        _ABLATIONS[3]: (36.9, 65.8, 76.5, 15.2, 40.8, 55.7),
        _ABLATIONS[4]: (40.1, 66.7, 77.6, 29.2, 55.1, 66.6),
    },
}
_ABLATIONS_IMAGENET = (40.8, 35.2, 45.6, 38.6, 41.2)  # top-1


def benchmark_of(task: str) -> str:
    """The benchmark whose published results stand beside a task's.

    "vqav2" beside "vqav2_val", its labelled split, too.

    Args:
        task: name of a task, of this package or of a user's own.
    """
    return task if task in BENCHMARKS else task.removesuffix("_val")


def series(benchmark: str) -> Sequence[Series]:
    """What was published on a benchmark, small models first.

    () on one that nobody listed here reports.

    Args:
        benchmark: its name, such as "coco".
    """
    return BENCHMARKS[benchmark].published if benchmark in BENCHMARKS else ()


def contrastive(task: str) -> dict[str, dict[str, float]]:
    """What was published of contrastive models, {model: {metric: percent}}.

    {} on a task that the paper does not have.

    Args:
        task: name of a zero-shot classification or retrieval task.
    """
    if task in _RETRIEVAL:
        names = [
            f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)
        ]
        return {
            model: dict(zip(names, line, strict=True)) for model, line in _RETRIEVAL[task].items()
        }
    if task not in ("imagenet_zero_shot", "kinetics700_zero_shot"):
        return {}
    (final,) = (
        each.values[0] for each in series(task.removesuffix("_zero_shot")) if each.model == _FINAL
    )
    if task == "kinetics700_zero_shot":
        return {_FINAL: {"top1_top5": final}}
    ablations = zip(_ABLATIONS, _ABLATIONS_IMAGENET, strict=True)
    return {_FINAL: {"top1": final}, **{model: {"top1": value} for model, value in ablations}}


def overall(values: Mapping[str, float]) -> float | None:
    """The overall score of the ablations (paper, Table 3).

    The mean over the five DEV benchmarks of the value in percent of the fine-tuned state of the
    art.

    It gives what the paper prints to within 0.17 on all rows of Table 10, not exactly; the paper
    does not say why.

    Args:
        values: by benchmark, in the unit of this file.

    Returns:
        The score in percent; None if one of the five is missing.
    """
    best = {
        name: listed.fine_tuned
        for name, listed in BENCHMARKS.items()
        if listed.is_dev and listed.fine_tuned
    }
    if not best.keys() <= values.keys():
        return None
    return sum(100 * values[name] / most for name, most in best.items()) / len(best)
