"""VQAv2: VQA accuracy on test-dev (paper, Table 6), and on the validation split as `vqav2_val`.

The answers of test-dev are hidden: `vqav2` writes OUTPUT/submissions/vqav2-SHOTS.json for eval.ai
(the VQA challenge), and results.json has no row of it. The server wants an answer to every question
of the whole test split: if the directory has its file, the questions that are not of test-dev get
an empty answer. `vqav2_val` has answers. It is no benchmark of the paper, but others report it
where they make no submission.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks import vqa_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, Series, at_shots
from flamingo_jax.evaluation.metrics.vqa_accuracy import VQA_ACCURACY


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 443,757 training questions, or 107,394 questions of test-dev without answers.

    Of `vqav2_val`, the 214,354 validation questions are the test questions.
    """
    (subset,) = files.splits[split]
    if subset == "test-dev2015":
        return vqa_files.items(files, split, None, images="test2015", shown="answer")
    answers = f"v2_mscoco_{subset}_annotations.json"
    return vqa_files.items(files, split, answers, images=subset, shown="answer")


def _submission_ids(files: Files) -> Sequence[int]:
    """Reads the ids of all 447,793 questions of the test split, in their order.

    Returns () if their file is missing.
    """
    name = "v2_OpenEnded_mscoco_test2015_questions.json"
    return vqa_files.question_ids(files, name, subtype="test2015") if files.has(name) else ()


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2",
    metrics=(VQA_ACCURACY,),
    visual="image",
    queries="test-dev",
    splits={"train": ("train2014",), "test": ("test-dev2015",)},
    files={
        "train": ("v2_OpenEnded_mscoco_train2014_questions.json",),
        "test": ("v2_OpenEnded_mscoco_test-dev2015_questions.json",),
    },
    download="visualqa.org/download.html (Balanced Real Images, v2.0: questions, annotations, and "
    "COCO's images)",
    layout="""
        v2_OpenEnded_mscoco_train2014_questions.json
        v2_OpenEnded_mscoco_val2014_questions.json
        v2_OpenEnded_mscoco_test-dev2015_questions.json
        v2_OpenEnded_mscoco_test2015_questions.json        (for the submission alone)
        v2_mscoco_train2014_annotations.json
        v2_mscoco_val2014_annotations.json
        images/
          train2014/
            COCO_train2014_000000000009.jpg, ...
          val2014/        (vqav2_val alone)
            COCO_val2014_000000000042.jpg, ...
          test2015/
            COCO_test2015_000000000001.jpg, ...
    """,
    items=_items,
    submission_ids=_submission_ids,
    published=(
        *at_shots(
            {
                "Flamingo-3B": (49.2, 53.2, 55.4, 56.7, 57.1),
                "Flamingo-9B": (51.8, 56.3, 58.0, 59.4, 60.4),
                "Flamingo-80B": (56.3, 63.1, 65.6, 66.8, 67.6),
                "OpenFlamingo-3B": (44.6, 45.8, 46.2, 46.6, 47.0),
                "OpenFlamingo-3B-I": (44.1, 45.7, 45.9, 45.8, 44.8),
                "OpenFlamingo-4B": (45.1, 49.0, 48.3, 45.5, 43.0),
                "OpenFlamingo-4B-I": (46.9, 49.0, 47.4, 45.1, 47.3),
                "OpenFlamingo-9B": (52.7, 54.8, 54.8, 54.3, 53.3),
                "IDEFICS-9B": (50.9, 55.4, 56.4, 57.0, 57.9),
                "IDEFICS-80B": (60.0, 63.6, 64.8, 65.4, 65.9),
            }
        ),
        Series("OpenFlamingo-9B", {4: 55.1, 32: 56.8}, "rices"),
    ),
    fine_tuned_sota=80.2,
    zero_few_shot_sota=38.2,
    is_dev=True,
)
VQAV2_VAL = dataclasses.replace(
    VQAV2,
    name="vqav2_val",
    own_queries="val",
    data="vqav2",
    splits={**VQAV2.splits, "test": ("val2014",)},
    files={**VQAV2.files, "test": ("v2_OpenEnded_mscoco_val2014_questions.json",)},
)
