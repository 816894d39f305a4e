"""VizWiz: VQA accuracy on test-dev (paper, Table 6), and on the validation split as `vizwiz_val`.

The answers of the test images are hidden: `vizwiz` writes OUTPUT/submissions/vizwiz-SHOTS.json for eval.ai (the VizWiz challenge), and results.json has
no row of it. `vizwiz_val` has answers; it is no benchmark of the paper, but what others report where no submission is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks.annotations import Files, most_common, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Image

DOWNLOAD = "vizwiz.org/tasks-and-datasets/vqa (images, and Annotations.zip)"
LAYOUT = """
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
"""


@dataclasses.dataclass(frozen=True)
class VizWiz:
    """VizWiz in `directory`, with the questions of the test split."""

    directory: PathLike
    name: ClassVar[str] = "vizwiz"
    metrics: ClassVar[tuple[str, ...]] = ("vqa_accuracy",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 20,523 training questions."""
        return self._items("train", answered=True)

    def test(self) -> Sequence[Item]:
        """The 8,000 test questions, without answers."""
        return self._items("test", answered=False)

    def _items(self, split: str, *, answered: bool) -> list[Item]:
        files = Files(self.directory, "vizwiz", DOWNLOAD, LAYOUT)
        names = (f"Annotations/{split}.json", f"annotations/{split}.json", f"{split}.json")
        value, path = files.json(*names), files.path(*names)
        found = records(value, {"image": str, "question": str, **({"answers": list} if answered else {})}, path)
        if wrong := [each["image"] for each in found if not each["image"].startswith(f"VizWiz_{split}_")]:
            raise files.wrong(path, f"questions about {wrong[0]}", f"about images VizWiz_{split}_*.jpg")
        folder = files.folder(split, f"images/{split}", "images", of=found[0]["image"])
        if answered:
            for each in found:
                records(each["answers"], {"answer": str}, path)
        return [_item(each, folder) for each in found]


@dataclasses.dataclass(frozen=True)
class VizWizVal(VizWiz):
    """VizWiz with the questions of the validation split."""

    name: ClassVar[str] = "vizwiz_val"
    data: ClassVar[str] = "vizwiz"  # the same directory, config.data.vizwiz

    def test(self) -> Sequence[Item]:
        """The 4,319 validation questions."""
        return self._items("val", answered=True)


def _item(record: dict[str, Any], folder: Path) -> Item:
    answers = tuple(each["answer"] for each in record.get("answers", ()))
    return Item(
        id=record["image"].rpartition(".")[0],  # one question per image
        visual=Image(f"{folder}/{record['image']}"),
        prefix=question(record["question"]),
        answer=one_line(most_common([answer for answer in answers if answer.strip()])),  # a few of train are empty
        references=answers,
        extra={"image": record["image"]},
    )
