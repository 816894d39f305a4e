"""VQAv2: VQA accuracy on test-dev (paper, Table 6), and on the validation split as `vqav2_val`.

The answers of test-dev are hidden: `vqav2` writes OUTPUT/submissions/vqav2-SHOTS.json for eval.ai (the VQA challenge), and results.json has no row of
it. The server wants an answer to every question of the whole test split: with its file in the directory, those that are not of test-dev get an empty one.
`vqav2_val` has answers; it is no benchmark of the paper, but what others report where no submission is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import vqa_files
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item

DOWNLOAD = "visualqa.org/download.html (Balanced Real Images, v2.0: questions, annotations, and COCO's images)"
LAYOUT = """
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
"""


@dataclasses.dataclass(frozen=True)
class VQAv2:
    """VQAv2 in `directory`, with the questions of test-dev."""

    directory: PathLike
    name: ClassVar[str] = "vqav2"
    metrics: ClassVar[tuple[str, ...]] = ("vqa_accuracy",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 443,757 training questions."""
        return self._answered("train2014")

    def test(self) -> Sequence[Item]:
        """The 107,394 questions of test-dev, without answers."""
        name = "v2_OpenEnded_mscoco_test-dev2015_questions.json"
        return vqa_files.items(self._files, name, None, subtype="test-dev2015", images="test2015", shown="answer")

    def submission_questions(self) -> Sequence[int]:
        """The ids of all 447,793 questions of the test split, in their order; none if their file is not there."""
        name = "v2_OpenEnded_mscoco_test2015_questions.json"
        return vqa_files.question_ids(self._files, name, subtype="test2015") if self._files.has(name) else ()

    @property
    def _files(self) -> Files:
        return Files(self.directory, "vqav2", DOWNLOAD, LAYOUT)

    def _answered(self, split: str) -> Sequence[Item]:
        questions, answers = f"v2_OpenEnded_mscoco_{split}_questions.json", f"v2_mscoco_{split}_annotations.json"
        return vqa_files.items(self._files, questions, answers, subtype=split, images=split, shown="answer")


@dataclasses.dataclass(frozen=True)
class VQAv2Val(VQAv2):
    """VQAv2 with the questions of the validation split."""

    name: ClassVar[str] = "vqav2_val"
    data: ClassVar[str] = "vqav2"  # the same directory, config.data.vqav2

    def test(self) -> Sequence[Item]:
        """The 214,354 validation questions."""
        return self._answered("val2014")
