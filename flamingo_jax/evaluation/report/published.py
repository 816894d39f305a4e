"""Results that others published, beside which a run's own are set: Flamingo (Tables 1, 7, 9 and 11), OpenFlamingo, IDEFICS.

All are in the unit of the publications: percent, and 100 times CIDEr, NDCG, WUPS and ROC AUC. None: was not reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

SHOTS = (0, 4, 8, 16, 32)
Line: TypeAlias = "Sequence[float | None]"  # values at SHOTS


@dataclasses.dataclass(frozen=True)
class Listed:
    """A benchmark as the paper lists it (Tables 1 and 6).

    Attributes:
        title: its name in tables.
        metric: name from `evaluation.metrics.METRICS` of what the paper reports.
        queries: what the paper evaluates on.
        fine_tuned: the state of the art of fine-tuned models by Table 1 (Table 7: ImageNet, Kinetics700); None: there was none.
        zero_few_shot: the best of zero-shot and few-shot models before Flamingo, by Table 1 (Table 7: zero-shot, contrastive).
        is_dev: whether the paper's design was chosen on it.
        is_youtube: whether the paper had only the videos that were public in April 2022.
    """

    title: str
    metric: str
    queries: str
    fine_tuned: float | None = None
    zero_few_shot: float | None = None
    is_dev: bool = False
    is_youtube: bool = False


BENCHMARKS: Mapping[str, Listed] = {
    "okvqa": Listed("OKVQA", "okvqa_accuracy", "val", 54.4, 43.3, is_dev=True),
    "vqav2": Listed("VQAv2", "vqa_accuracy", "test-dev", 80.2, 38.2, is_dev=True),
    "coco": Listed("COCO", "cider", "Karpathy test", 143.3, 32.2, is_dev=True),
    "msvdqa": Listed("MSVDQA", "top1", "test", 47.9, 35.2, is_dev=True, is_youtube=True),
    "vatex": Listed("VATEX", "cider", "test", 76.3, None, is_dev=True, is_youtube=True),
    "vizwiz": Listed("VizWiz", "vqa_accuracy", "test-dev", 57.2),
    "flickr30k": Listed("Flickr30k", "cider", "Karpathy test", 67.4),
    "msrvttqa": Listed("MSRVTTQA", "top1", "test", 46.8, 19.2, is_youtube=True),
    "ivqa": Listed("iVQA", "ivqa_accuracy", "test", 35.4, 12.2, is_youtube=True),
    "youcook2": Listed("YouCook2", "cider", "val", 138.7, is_youtube=True),
    "star": Listed("STAR", "ranking", "test", 36.7, 39.4),
    "visdial": Listed("VisDial", "visdial_ndcg", "val", 75.2, 11.6),
    "textvqa": Listed("TextVQA", "vqa_accuracy", "val", 54.7),
    "nextqa": Listed("NextQA", "wups", "test", 25.2),
    "hateful_memes": Listed("HatefulMemes", "roc_auc", "seen test", 75.4, 66.1),
    "rareact": Listed("RareAct", "rareact_mwap", "test", None, 40.7, is_youtube=True),
    "imagenet": Listed("ImageNet", "ranking", "val", 91.0, 85.7),
    "kinetics700": Listed("Kinetics700", "top1_top5", "val", 89.0, 69.6, is_youtube=True),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where numbers stand, and what was different there."""

    where: str
    caveat: str = ""


SOURCES: Mapping[str, Source] = {
    "Flamingo": Source("Flamingo, arXiv 2204.14198 v2, Table 1 (ImageNet and Kinetics700: Table 7)"),
    "OpenFlamingo": Source(
        "OpenFlamingo, arXiv 2308.01390 v2, Table 11 (RICES: Table 12)", "means of 3 seeds; images of 224 x 224 pixels"
    ),
    "IDEFICS": Source("IDEFICS, the models' card", "images of 224 x 224 pixels; COCO is in its training data"),
}


@dataclasses.dataclass(frozen=True)
class Series:
    """The results of one model on one benchmark.

    Attributes:
        model: its name.
        source: key of SOURCES.
        values: by number of shots.
        selection: how support examples were chosen, "random" or "rices"; "" without any.
        detail: what else is special, such as "5 per class".
    """

    model: str
    source: str
    values: Mapping[int, float]
    selection: str = "random"
    detail: str = ""

    @property
    def label(self) -> str:
        """The model and the setting, such as "Flamingo-3B, RICES, 5 per class"."""
        return ", ".join(filter(None, (self.model, "RICES" if self.selection == "rices" else "", self.detail)))


# Table 1. VisDial at 32 shots was out of the LM's context: v1 prints OOC, v2 repeats the numbers of 4 shots.
_FLAMINGO: Mapping[str, Mapping[str, Line]] = {
    "okvqa": {
        "Flamingo-3B": (41.2, 43.3, 44.6, 45.6, 45.9),
        "Flamingo-9B": (44.7, 49.3, 50.0, 50.8, 51.0),
        "Flamingo-80B": (50.6, 57.4, 57.5, 57.8, 57.8),
    },
    "vqav2": {
        "Flamingo-3B": (49.2, 53.2, 55.4, 56.7, 57.1),
        "Flamingo-9B": (51.8, 56.3, 58.0, 59.4, 60.4),
        "Flamingo-80B": (56.3, 63.1, 65.6, 66.8, 67.6),
    },
    "coco": {
        "Flamingo-3B": (73.0, 85.0, 90.6, 95.4, 99.0),
        "Flamingo-9B": (79.4, 93.1, 99.0, 102.2, 106.3),
        "Flamingo-80B": (84.3, 103.2, 108.8, 110.5, 113.8),
    },
    "msvdqa": {
        "Flamingo-3B": (27.5, 33.0, 37.0, 40.2, 42.6),
        "Flamingo-9B": (30.2, 36.2, 40.8, 44.5, 47.2),
        "Flamingo-80B": (35.6, 41.7, 45.5, 48.4, 52.3),
    },
    "vatex": {
        "Flamingo-3B": (40.1, 50.0, 54.5, 57.1, 59.2),
        "Flamingo-9B": (39.5, 51.7, 55.2, 58.5, 57.4),
        "Flamingo-80B": (46.7, 56.0, 60.6, 62.8, 65.1),
    },
    "vizwiz": {
        "Flamingo-3B": (28.9, 34.0, 38.4, 43.3, 45.5),
        "Flamingo-9B": (28.8, 34.9, 39.4, 43.0, 44.0),
        "Flamingo-80B": (31.6, 39.6, 44.8, 48.4, 49.8),
    },
    "flickr30k": {
        "Flamingo-3B": (60.6, 72.0, 71.7, 73.4, 71.2),
        "Flamingo-9B": (61.5, 72.6, 73.4, 72.7, 72.8),
        "Flamingo-80B": (67.2, 75.1, 78.2, 78.9, 75.4),
    },
    "msrvttqa": {
        "Flamingo-3B": (11.0, 14.9, 19.6, 23.4, 25.6),
        "Flamingo-9B": (13.7, 18.2, 23.9, 27.6, 29.4),
        "Flamingo-80B": (17.4, 23.9, 27.6, 30.0, 31.0),
    },
    "ivqa": {
        "Flamingo-3B": (32.7, 35.7, 36.8, 37.4, 37.7),
        "Flamingo-9B": (35.2, 37.7, 40.0, 41.5, 40.7),
        "Flamingo-80B": (40.7, 44.1, 44.8, 45.2, 45.3),
    },
    "youcook2": {
        "Flamingo-3B": (55.8, 64.6, 68.0, 73.2, 76.7),
        "Flamingo-9B": (55.0, 70.8, 75.0, 77.2, 77.3),
        "Flamingo-80B": (60.1, 74.5, 80.7, 84.2, 86.8),
    },
    "star": {
        "Flamingo-3B": (39.6, 41.3, 40.6, 40.1, 41.6),
        "Flamingo-9B": (41.8, 42.8, 43.4, 42.4, 41.2),
        "Flamingo-80B": (39.7, 42.4, 42.3, 41.1, 42.2),
    },
    "visdial": {
        "Flamingo-3B": (46.1, 47.3, 47.6, 47.5, None),
        "Flamingo-9B": (48.0, 50.4, 51.2, 51.3, None),
        "Flamingo-80B": (52.0, 55.6, 56.4, 56.8, None),
    },
    "textvqa": {
        "Flamingo-3B": (30.1, 32.7, 32.4, 31.8, 30.6),
        "Flamingo-9B": (31.8, 33.6, 33.6, 33.5, 32.6),
        "Flamingo-80B": (35.0, 36.5, 37.3, 37.6, 37.9),
    },
    "nextqa": {
        "Flamingo-3B": (21.3, 22.4, 23.9, 25.2, 26.1),
        "Flamingo-9B": (23.0, 24.7, 25.8, 27.6, 28.4),
        "Flamingo-80B": (26.7, 30.8, 32.3, 32.9, 33.5),
    },
    "hateful_memes": {
        "Flamingo-3B": (53.7, 53.6, 54.7, 55.3, 56.3),
        "Flamingo-9B": (57.0, 62.7, 63.9, 64.5, 63.5),
        "Flamingo-80B": (46.4, 68.6, 70.0, 70.0, 70.0),
    },
    "rareact": {
        "Flamingo-3B": (58.4, None, None, None, None),
        "Flamingo-9B": (57.9, None, None, None, None),
        "Flamingo-80B": (60.8, None, None, None, None),
    },
}

_OPEN_FLAMINGO: Mapping[str, Mapping[str, Line]] = {
    "coco": {
        "OpenFlamingo-3B": (74.9, 77.3, 85.9, 89.8, 93.0),
        "OpenFlamingo-3B-I": (74.4, 82.7, 87.8, 91.9, 94.8),
        "OpenFlamingo-4B": (76.7, 81.8, 90.7, 93.9, 95.1),
        "OpenFlamingo-4B-I": (81.2, 85.8, 94.8, 98.0, 99.2),
        "OpenFlamingo-9B": (79.5, 89.0, 96.3, 98.8, 99.5),
    },
    "flickr30k": {
        "OpenFlamingo-3B": (52.3, 57.2, 58.6, 59.2, 61.1),
        "OpenFlamingo-3B-I": (51.2, 59.1, 60.7, 63.0, 64.5),
        "OpenFlamingo-4B": (53.6, 60.7, 55.9, 56.8, 56.9),
        "OpenFlamingo-4B-I": (55.6, 61.2, 59.0, 54.8, 53.0),
        "OpenFlamingo-9B": (59.5, 65.8, 62.9, 62.8, 61.3),
    },
    "vqav2": {
        "OpenFlamingo-3B": (44.6, 45.8, 46.2, 46.6, 47.0),
        "OpenFlamingo-3B-I": (44.1, 45.7, 45.9, 45.8, 44.8),
        "OpenFlamingo-4B": (45.1, 49.0, 48.3, 45.5, 43.0),
        "OpenFlamingo-4B-I": (46.9, 49.0, 47.4, 45.1, 47.3),
        "OpenFlamingo-9B": (52.7, 54.8, 54.8, 54.3, 53.3),
    },
    "okvqa": {
        "OpenFlamingo-3B": (28.2, 30.3, 31.1, 30.9, 31.0),
        "OpenFlamingo-3B-I": (28.7, 30.6, 31.5, 30.7, 30.6),
        "OpenFlamingo-4B": (30.7, 35.1, 33.9, 28.5, 26.4),
        "OpenFlamingo-4B-I": (31.7, 34.6, 33.7, 31.3, 34.7),
        "OpenFlamingo-9B": (37.8, 40.1, 41.1, 42.7, 42.4),
    },
    "textvqa": {
        "OpenFlamingo-3B": (24.2, 27.0, 27.7, 28.0, 28.3),
        "OpenFlamingo-3B-I": (23.1, 28.1, 29.1, 29.1, 28.5),
        "OpenFlamingo-4B": (21.0, 25.9, 21.3, 18.2, 14.1),
        "OpenFlamingo-4B-I": (21.1, 27.2, 25.1, 23.2, 23.2),
        "OpenFlamingo-9B": (24.2, 28.2, 29.1, 27.3, 23.8),
    },
    "vizwiz": {
        "OpenFlamingo-3B": (23.7, 27.0, 32.1, 36.1, 39.8),
        "OpenFlamingo-3B-I": (23.4, 27.7, 32.1, 35.3, 39.3),
        "OpenFlamingo-4B": (18.8, 26.6, 28.8, 24.6, 23.1),
        "OpenFlamingo-4B-I": (21.5, 26.5, 29.1, 31.0, 31.3),
        "OpenFlamingo-9B": (27.5, 34.1, 38.5, 42.5, 44.0),
    },
    "hateful_memes": {
        "OpenFlamingo-3B": (51.2, 50.6, 52.0, 48.5, 50.2),
        "OpenFlamingo-3B-I": (50.1, 49.5, 50.7, 48.7, 47.8),
        "OpenFlamingo-4B": (52.3, 51.5, 55.2, 54.5, 52.2),
        "OpenFlamingo-4B-I": (53.1, 54.9, 58.5, 56.9, 54.9),
        "OpenFlamingo-9B": (51.6, 54.0, 54.7, 53.9, 53.8),
    },
}
# OpenFlamingo-9B with RICES, at 4 and 32 shots. Its Table 9 prints 38.3 for OKVQA at 4 shots, Table 12 prints 42.0.
_OPEN_FLAMINGO_RICES: Mapping[str, tuple[float, float]] = {
    "coco": (93.1, 109.0),
    "flickr30k": (52.2, 63.0),
    "vqav2": (55.1, 56.8),
    "okvqa": (42.0, 46.3),
    "textvqa": (34.2, 31.1),
    "vizwiz": (41.0, 46.4),
    "hateful_memes": (70.1, 73.6),
}

_IDEFICS: Mapping[str, Mapping[str, Line]] = {
    "vqav2": {"IDEFICS-9B": (50.9, 55.4, 56.4, 57.0, 57.9), "IDEFICS-80B": (60.0, 63.6, 64.8, 65.4, 65.9)},
    "okvqa": {"IDEFICS-9B": (38.4, 45.5, 47.7, 48.4, 49.6), "IDEFICS-80B": (45.2, 52.4, 55.1, 56.8, 57.8)},
    "textvqa": {"IDEFICS-9B": (25.9, 27.6, 27.5, 27.9, 28.3), "IDEFICS-80B": (30.9, 34.4, 35.7, 36.3, 36.7)},
    "vizwiz": {"IDEFICS-9B": (35.5, 36.9, 40.4, 42.6, 43.7), "IDEFICS-80B": (36.0, 40.4, 46.1, 48.3, 50.0)},
    "coco": {"IDEFICS-9B": (46.0, 93.0, 97.0, 99.7, 98.0), "IDEFICS-80B": (91.8, 110.3, 114.3, 116.6, 116.6)},
    "flickr30k": {"IDEFICS-9B": (27.3, 59.7, 61.9, 64.5, 64.4), "IDEFICS-80B": (53.7, 73.7, 76.6, 80.1, 81.1)},
    "hateful_memes": {"IDEFICS-9B": (51.7, 50.7, 51.0, 50.9, 49.8), "IDEFICS-80B": (60.6, 57.8, 58.2, 55.8, 52.5)},
}

# Table 7: (model, selection, detail, shots) -> ImageNet top-1, Kinetics700 mean of top-1 and top-5.
_CLASSIFICATION: Mapping[tuple[str, str, str, int], tuple[float, float]] = {
    ("contrastive NFNet-F6", "", "", 0): (77.9, 62.9),
    ("Flamingo-3B", "rices", "1 per class", 8): (70.9, 55.9),
    ("Flamingo-3B", "rices", "1 per class", 16): (71.0, 56.9),
    ("Flamingo-3B", "rices", "5 per class", 16): (72.7, 58.3),
    ("Flamingo-9B", "rices", "1 per class", 8): (71.2, 58.0),
    ("Flamingo-9B", "rices", "1 per class", 16): (71.7, 59.4),
    ("Flamingo-9B", "rices", "5 per class", 16): (75.2, 60.9),
    ("Flamingo-80B", "random", "at most 0.02 per class", 16): (66.4, 51.2),
    ("Flamingo-80B", "rices", "1 per class", 8): (71.9, 60.4),
    ("Flamingo-80B", "rices", "1 per class", 16): (71.7, 62.7),
    ("Flamingo-80B", "rices", "5 per class", 16): (76.0, 63.5),
    ("Flamingo-80B", "rices", "5 per class, ensembling", 16): (77.3, 64.2),
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
    """The benchmark whose published results stand beside a task's: "vqav2" beside "vqav2_val", its labelled split, too.

    Args:
        task: name of a task, of this package or of a user's own.
    """
    return task if task in BENCHMARKS else task.removesuffix("_val")


def series(benchmark: str) -> list[Series]:
    """What was published on a benchmark, small models first; [] on one that nobody listed here reports.

    Args:
        benchmark: its name, such as "coco".
    """
    tables = {"Flamingo": _FLAMINGO, "OpenFlamingo": _OPEN_FLAMINGO, "IDEFICS": _IDEFICS}
    found = [
        Series(model, source, {shots: value for shots, value in zip(SHOTS, line, strict=True) if value is not None})
        for source, table in tables.items()
        for model, line in table.get(benchmark, {}).items()
    ]
    if benchmark in _OPEN_FLAMINGO_RICES:
        values = dict(zip((4, 32), _OPEN_FLAMINGO_RICES[benchmark], strict=True))
        found.append(Series("OpenFlamingo-9B", "OpenFlamingo", values, "rices"))
    return found + _classification(benchmark)


def _classification(benchmark: str) -> list[Series]:
    """The lines of Table 7, and IDEFICS' at 16 shots on ImageNet."""
    if benchmark not in ("imagenet", "kinetics700"):
        return []
    column = ("imagenet", "kinetics700").index(benchmark)
    lines: dict[tuple[str, str, str], dict[int, float]] = {}
    for (model, selection, detail, shots), values in _CLASSIFICATION.items():
        lines.setdefault((model, selection, detail), {})[shots] = values[column]
    found = [Series(model, "Flamingo", values, *setting) for (model, *setting), values in lines.items()]
    if benchmark == "imagenet":
        found += [
            Series("IDEFICS-9B", "IDEFICS", {16: 53.5}),
            Series("IDEFICS-80B", "IDEFICS", {16: 65.4}),
            Series("IDEFICS-9B", "IDEFICS", {16: 64.5}, "rices", "5,000 support examples"),
            Series("IDEFICS-80B", "IDEFICS", {16: 72.9}, "rices", "5,000 support examples"),
        ]
    return found


def contrastive(task: str) -> dict[str, dict[str, float]]:
    """What was published of contrastive models, {model: {metric: percent}}; {} on a task that the paper does not have.

    Args:
        task: name of a zero-shot classification or retrieval task.
    """
    if task in _RETRIEVAL:
        names = [f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
        return {model: dict(zip(names, line, strict=True)) for model, line in _RETRIEVAL[task].items()}
    if task not in ("imagenet_zero_shot", "kinetics700_zero_shot"):
        return {}
    imagenet, kinetics = _CLASSIFICATION[_FINAL, "", "", 0]
    if task == "kinetics700_zero_shot":
        return {_FINAL: {"top1_top5": kinetics}}
    ablations = zip(_ABLATIONS, _ABLATIONS_IMAGENET, strict=True)
    return {_FINAL: {"top1": imagenet}, **{model: {"top1": value} for model, value in ablations}}


def overall(values: Mapping[str, float]) -> float | None:
    """The overall score of the ablations (paper, Table 3): the mean over the five DEV benchmarks of the value in percent of the fine-tuned state of the art.

    It gives what the paper prints to within 0.17 on all rows of Table 10, not exactly; the paper does not say why.

    Args:
        values: by benchmark, in the unit of this file.

    Returns:
        The score in percent; None if one of the five is missing.
    """
    best = {name: listed.fine_tuned for name, listed in BENCHMARKS.items() if listed.is_dev and listed.fine_tuned}
    if not best.keys() <= values.keys():
        return None
    return sum(100 * values[name] / most for name, most in best.items()) / len(best)
