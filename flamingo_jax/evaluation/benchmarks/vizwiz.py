"""VizWiz: VQA accuracy on test-dev (paper, Table 6), and on the validation split as `vizwiz_val`.

The answers of the test images are hidden: `vizwiz` writes OUTPUT/submissions/vizwiz-SHOTS.json for
eval.ai (the VizWiz challenge), and results.json has no row of it. `vizwiz_val` has answers. It is
no benchmark of the paper, but others report it where they make no submission.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import (
    Files,
    FileSplit,
    most_common,
    one_line,
    records,
)
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, Series, at_shots
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.vqa_accuracy import VQA_ACCURACY
from flamingo_jax.inference.prompt import Image


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 20,523 training questions, or 8,000 test questions without answers.

    Of `vizwiz_val`, the 4,319 validation questions are the test questions.
    """
    (subset,), path = files.splits[split], files.annotation_path(split)
    answered = subset != "test"
    fields = {"image": str, "question": str, **({"answers": list} if answered else {})}
    found = files.records(split, fields)
    images = [each["image"] for each in found]
    if wrong := [image for image in images if not image.startswith(f"VizWiz_{subset}_")]:
        expected = f"about images VizWiz_{subset}_*.jpg"
        raise files.wrong(path, f"questions about {wrong[0]}", expected)
    folder = files.folder(subset, f"images/{subset}", "images", of=images[0])
    if answered:
        for each in found:
            records(each["answers"], {"answer": str}, path)
    return [_item(each, folder) for each in found]


def _item(record: dict[str, Any], folder: Path) -> Item:
    answers = tuple(each["answer"] for each in record.get("answers", ()))
    return Item(
        id=record["image"].rpartition(".")[0],  # one question per image
        visual=Image(f"{folder}/{record['image']}"),
        prefix=question(record["question"]),
        # a few training answers are empty
        answer=one_line(most_common([answer for answer in answers if answer.strip()])),
        references=answers,
        extra={"image": record["image"]},
    )


def _places(subset: str) -> tuple[str, ...]:
    return (f"Annotations/{subset}.json", f"annotations/{subset}.json", f"{subset}.json")


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz",
    metrics=(VQA_ACCURACY,),
    visual="image",
    queries="test-dev",
    files={"train": _places("train"), "test": _places("test")},
    download="vizwiz.org/tasks-and-datasets/vqa (images, and Annotations.zip)",
    layout="""
        Annotations/
          train.json
          val.json        (vizwiz_val alone)
          test.json
        train/
          VizWiz_train_00000000.jpg, ...
        val/
          VizWiz_val_00000000.jpg, ...
        test/
          VizWiz_test_00000000.jpg, ...
    """,
    items=_items,
    published=(
        *at_shots(
            {
                "Flamingo-3B": (28.9, 34.0, 38.4, 43.3, 45.5),
                "Flamingo-9B": (28.8, 34.9, 39.4, 43.0, 44.0),
                "Flamingo-80B": (31.6, 39.6, 44.8, 48.4, 49.8),
                "OpenFlamingo-3B": (23.7, 27.0, 32.1, 36.1, 39.8),
                "OpenFlamingo-3B-I": (23.4, 27.7, 32.1, 35.3, 39.3),
                "OpenFlamingo-4B": (18.8, 26.6, 28.8, 24.6, 23.1),
                "OpenFlamingo-4B-I": (21.5, 26.5, 29.1, 31.0, 31.3),
                "OpenFlamingo-9B": (27.5, 34.1, 38.5, 42.5, 44.0),
                "IDEFICS-9B": (35.5, 36.9, 40.4, 42.6, 43.7),
                "IDEFICS-80B": (36.0, 40.4, 46.1, 48.3, 50.0),
            }
        ),
        Series("OpenFlamingo-9B", {4: 41.0, 32: 46.4}, "rices"),
    ),
    fine_tuned_sota=57.2,
)
VIZWIZ_VAL = dataclasses.replace(
    VIZWIZ,
    name="vizwiz_val",
    own_queries="val",
    data="vizwiz",
    splits={"train": ("train",), "test": ("val",)},
    files={"train": _places("train"), "test": _places("val")},
)
