"""OK-VQA: VQA accuracy on the validation split (paper, Table 6).

An annotator's answer is there twice: `raw_answer` as it was typed, which support examples show, and `answer`, which is stemmed, and is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import vqa_files
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item

DOWNLOAD = "okvqa.allenai.org/download.html (v1.1) and cocodataset.org (2014 Train and Val images)"
LAYOUT = """
OpenEnded_mscoco_train2014_questions.json
OpenEnded_mscoco_val2014_questions.json
mscoco_train2014_annotations.json
mscoco_val2014_annotations.json
images/
  train2014/
    COCO_train2014_000000000009.jpg, ...
  val2014/
    COCO_val2014_000000000042.jpg, ...
"""


@dataclasses.dataclass(frozen=True)
class OKVQA:
    """OK-VQA in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "okvqa"
    metrics: ClassVar[tuple[str, ...]] = ("okvqa_accuracy",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 9,009 training questions."""
        return self._items("train2014")

    def test(self) -> Sequence[Item]:
        """The 5,046 validation questions."""
        return self._items("val2014")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        questions, answers = f"OpenEnded_mscoco_{split}_questions.json", f"mscoco_{split}_annotations.json"
        return vqa_files.items(files, questions, answers, subtype=split, images=split, shown="raw_answer")
