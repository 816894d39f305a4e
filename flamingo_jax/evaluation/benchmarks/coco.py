"""COCO captions: CIDEr on the 5,000 test images of the Karpathy split (paper, Table 6).

The directory holds the official files, or is a dataset that TFDS prepared (`tfds build coco_captions --file_format=array_record`: the one with
dataset_info.json). Both have the same splits, captions and ids.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.data import tfds_files
from flamingo_jax.evaluation.benchmarks import karpathy_splits
from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError, Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.lazy_items import LazyItems
from flamingo_jax.inference.prompt import Deferred

DOWNLOAD = "cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip) and cocodataset.org (2014 Train and Val images)"
LAYOUT = """
dataset_coco.json
images/
  train2014/
    COCO_train2014_000000000009.jpg, ...
  val2014/
    COCO_val2014_000000000042.jpg, ...
or the directory of a TFDS dataset coco_captions, with dataset_info.json
"""


@dataclasses.dataclass(frozen=True)
class Coco:
    """COCO captions in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "coco"
    metrics: ClassVar[tuple[str, ...]] = ("cider",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 113,287 images of train and restval."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The 5,000 test images."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        if tfds_files.is_prepared(self.directory):
            return _prepared_items(self.directory, split)
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        chosen = karpathy_splits.images(files, "dataset_coco.json", dataset="coco", split=split)
        folders = {each.get("filepath", ""): each["filename"] for each in reversed(chosen)}
        at = {name: files.folder(f"images/{name}", name, of=first) for name, first in folders.items()}
        return karpathy_splits.items(
            chosen, lambda each: f"{at[each.get('filepath', '')]}/{each['filename']}", "cocoid"
        )


def _prepared_items(directory: PathLike, split: str) -> LazyItems:
    try:
        splits = [tfds_files.examples(directory, name) for name in karpathy_splits.SPLITS[split]]
    except ValueError as error:
        raise AnnotationError(f"the benchmark 'coco': {error} Expected the builder coco_captions.") from error
    places = [(examples, index) for examples in splits for index in range(len(examples))]
    return LazyItems(len(places), lambda place: _prepared_item(*places[place]))


def _prepared_item(examples: Sequence[Mapping[str, Any]], index: int) -> Item:
    example = examples[index]
    if lacking := {"image/id", "captions"} - set(example):
        raise AnnotationError(
            f"the benchmark 'coco': an example lacks {', '.join(sorted(lacking))}, it has {', '.join(example)}. "
            "Expected the TFDS builder coco_captions."
        )
    id, captions = str(int(example["image/id"])), [text.decode() for text in example["captions"]["text"]]
    visual = Deferred(f"coco_captions/{id}", functools.partial(_picture, examples, index))
    return karpathy_splits.caption_item(id, visual, captions)


def _picture(examples: Sequence[Mapping[str, Any]], index: int) -> bytes:
    return examples[index]["image"]
