"""COCO captions: CIDEr on the 5,000 test images of the Karpathy split (paper, Table 6).

The directory has the official files, or a dataset that TFDS prepared: `tfds build coco_captions
--file_format=array_record` writes it, with a file dataset_info.json. Both have the same splits,
captions and ids.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.data import tfds_files
from flamingo_jax.evaluation.benchmarks import karpathy_splits
from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError, Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    LazyItems,
    Series,
    at_shots,
)
from flamingo_jax.evaluation.benchmarks.contrastive_task import ContrastiveTask, recalls
from flamingo_jax.evaluation.metrics.cider import CIDER
from flamingo_jax.inference.prompt import Deferred


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 113,287 training images (train and restval), or 5,000 test images."""
    if tfds_files.is_prepared(files.directory):
        return _prepared_items(files, split)
    chosen = karpathy_splits.images(files, split, dataset="coco", key="cocoid")
    folders = {each.get("filepath", ""): each["filename"] for each in reversed(chosen)}
    at = {name: files.folder(f"images/{name}", name, of=first) for name, first in folders.items()}
    return karpathy_splits.items(
        chosen, lambda each: f"{at[each.get('filepath', '')]}/{each['filename']}", "cocoid"
    )


def _prepared_items(files: Files, split: FileSplit) -> LazyItems:
    try:
        splits = [tfds_files.examples(files.directory, name) for name in files.splits[split]]
    except ValueError as error:
        raise AnnotationError(
            f"the benchmark 'coco': {error} Expected the builder coco_captions."
        ) from error
    places = [(examples, index) for examples in splits for index in range(len(examples))]
    return LazyItems(len(places), lambda place: _prepared_item(*places[place]))


def _prepared_item(examples: Sequence[Mapping[str, Any]], index: int) -> Item:
    example = examples[index]
    if lacking := {"image/id", "captions"} - set(example):
        raise AnnotationError(
            f"the benchmark 'coco': an example lacks {', '.join(sorted(lacking))}, it has "
            f"{', '.join(example)}. Expected the TFDS builder coco_captions."
        )
    id = str(int(example["image/id"]))
    captions = [text.decode() for text in example["captions"]["text"]]
    visual = Deferred(f"coco_captions/{id}", functools.partial(_picture, examples, index))
    return karpathy_splits.caption_item(id, visual, captions)


def _picture(examples: Sequence[Mapping[str, Any]], index: int) -> bytes:
    return examples[index]["image"]


COCO = Benchmark(
    name="coco",
    title="COCO",
    metrics=(CIDER,),
    visual="image",
    queries="Karpathy test",
    splits=karpathy_splits.SPLITS,
    files={"train": ("dataset_coco.json",), "test": ("dataset_coco.json",)},  # of both splits
    download="cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip) and "
    "cocodataset.org (2014 Train and Val images)",
    layout="""
        dataset_coco.json
        images/
          train2014/
            COCO_train2014_000000000009.jpg, ...
          val2014/
            COCO_val2014_000000000042.jpg, ...
        or the directory of a TFDS dataset coco_captions, with dataset_info.json
    """,
    items=_items,
    validation_queries=5000,  # Table 6
    published=(
        *at_shots(
            {
                "Flamingo-3B": (73.0, 85.0, 90.6, 95.4, 99.0),
                "Flamingo-9B": (79.4, 93.1, 99.0, 102.2, 106.3),
                "Flamingo-80B": (84.3, 103.2, 108.8, 110.5, 113.8),
                "OpenFlamingo-3B": (74.9, 77.3, 85.9, 89.8, 93.0),
                "OpenFlamingo-3B-I": (74.4, 82.7, 87.8, 91.9, 94.8),
                "OpenFlamingo-4B": (76.7, 81.8, 90.7, 93.9, 95.1),
                "OpenFlamingo-4B-I": (81.2, 85.8, 94.8, 98.0, 99.2),
                "OpenFlamingo-9B": (79.5, 89.0, 96.3, 98.8, 99.5),
                "IDEFICS-9B": (46.0, 93.0, 97.0, 99.7, 98.0),
                "IDEFICS-80B": (91.8, 110.3, 114.3, 116.6, 116.6),
            }
        ),
        Series("OpenFlamingo-9B", {4: 93.1, 32: 109.0}, "rices"),
    ),
    fine_tuned_sota=143.3,
    zero_few_shot_sota=32.2,
    contrastive=ContrastiveTask(
        "retrieval",
        queries="the 5,000 of Karpathy's test split",
        published=recalls(
            {
                "contrastive NFNet-F6": (65.9, 87.3, 92.9, 48.0, 73.3, 82.1),
                "NFNet-F0, LTIP": (38.6, 66.4, 76.4, 31.1, 57.4, 68.4),
                "NFNet-F0, ALIGN": (32.2, 58.9, 70.6, 23.7, 47.7, 59.4),
                "NFNet-F0, accumulation": (42.3, 68.3, 78.4, 31.5, 58.3, 69.0),
                "NFNet-F0, data merged": (36.9, 65.8, 76.5, 15.2, 40.8, 55.7),
                "NFNet-F0, round-robin": (40.1, 66.7, 77.6, 29.2, 55.1, 66.6),
            }
        ),
    ),
    is_dev=True,
)
