"""OK-VQA: VQA accuracy on the validation split (paper, Table 6).

The files have each annotator's answer twice: `raw_answer`, as typed, which support examples show;
and `answer`, which is stemmed, and which the metric compares with.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks import vqa_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, Series, at_shots
from flamingo_jax.evaluation.metrics.okvqa_accuracy import OKVQA_ACCURACY


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 9,009 training questions, or 5,046 validation questions."""
    (subset,) = files.splits[split]
    answers = f"mscoco_{subset}_annotations.json"
    return vqa_files.items(files, split, answers, images=subset, shown="raw_answer")


OKVQA = Benchmark(
    name="okvqa",
    title="OKVQA",
    metrics=(OKVQA_ACCURACY,),
    visual="image",
    queries="val",
    splits={"train": ("train2014",), "test": ("val2014",)},
    files={
        "train": ("OpenEnded_mscoco_train2014_questions.json",),
        "test": ("OpenEnded_mscoco_val2014_questions.json",),
    },
    download="okvqa.allenai.org/download.html (v1.1) and cocodataset.org (2014 Train and Val "
    "images)",
    layout="""
        OpenEnded_mscoco_train2014_questions.json
        OpenEnded_mscoco_val2014_questions.json
        mscoco_train2014_annotations.json
        mscoco_val2014_annotations.json
        images/
          train2014/
            COCO_train2014_000000000009.jpg, ...
          val2014/
            COCO_val2014_000000000042.jpg, ...
    """,
    items=_items,
    published=(
        *at_shots(
            {
                "Flamingo-3B": (41.2, 43.3, 44.6, 45.6, 45.9),
                "Flamingo-9B": (44.7, 49.3, 50.0, 50.8, 51.0),
                "Flamingo-80B": (50.6, 57.4, 57.5, 57.8, 57.8),
                "OpenFlamingo-3B": (28.2, 30.3, 31.1, 30.9, 31.0),
                "OpenFlamingo-3B-I": (28.7, 30.6, 31.5, 30.7, 30.6),
                "OpenFlamingo-4B": (30.7, 35.1, 33.9, 28.5, 26.4),
                "OpenFlamingo-4B-I": (31.7, 34.6, 33.7, 31.3, 34.7),
                "OpenFlamingo-9B": (37.8, 40.1, 41.1, 42.7, 42.4),
                "IDEFICS-9B": (38.4, 45.5, 47.7, 48.4, 49.6),
                "IDEFICS-80B": (45.2, 52.4, 55.1, 56.8, 57.8),
            }
        ),
        # Table 12; Table 9 prints 38.3 at 4 shots
        Series("OpenFlamingo-9B", {4: 42.0, 32: 46.3}, "rices"),
    ),
    fine_tuned_sota=54.4,
    zero_few_shot_sota=43.3,
    is_dev=True,
)
