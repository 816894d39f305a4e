"""TextVQA: VQA accuracy on the validation split (paper, Table 6). The text in the images is for the model to read: no OCR is put in the prompt.

Some pictures of OpenImages lie on their side, and only its list of images says so (textvqa.org asks to look there). With that list in the directory
they are turned; without it they are shown as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import PIL.Image

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks.annotations import Files, Types, most_common, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Deferred, Image, Visual

DOWNLOAD = "textvqa.org/dataset (v0.5.1), and the rotations from storage.googleapis.com/openimages (2018_04/train)"
ROTATIONS = ("train_images/rotation.csv", "train-images-boxable-with-rotation.csv")
LAYOUT = """
TextVQA_0.5.1_train.json
TextVQA_0.5.1_val.json
train_images/        (the images of train and of val)
  003a8ae2ef43b901.jpg, ...
train-images-boxable-with-rotation.csv        (optional)
"""


@dataclasses.dataclass(frozen=True)
class TextVQA:
    """TextVQA in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "textvqa"
    metrics: ClassVar[tuple[str, ...]] = ("vqa_accuracy",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 34,602 training questions."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The 5,000 validation questions."""
        return self._items("val")

    def _items(self, split: str) -> list[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        name = f"TextVQA_0.5.1_{split}.json"
        value, path = files.json(name), files.path(name)
        fields: dict[str, Types] = {"question_id": (int, str), "image_id": str, "question": str, "answers": list}
        found = records(value.get("data") if isinstance(value, dict) else None, fields, path)
        if wrong := {each.get("set_name", split) for each in found} - {split}:
            raise files.wrong(path, f"questions of the split {', '.join(sorted(wrong))}", f"of {split}")
        folder = files.folder("train_images", "images/train_images", of=f"{found[0]['image_id']}.jpg")
        turns = _quarter_turns(files)
        return [_item(each, folder, turns) for each in found]


def _quarter_turns(files: Files) -> Mapping[str, int]:
    """Counterclockwise quarter turns that set an image upright, by image id; upright ones are left out."""
    if not any(files.has(name) for name in ROTATIONS):
        return {}
    turns = {}
    for row in files.csv(*ROTATIONS, columns=("ImageID", "Rotation")):
        try:
            degrees = float(row["Rotation"] or 0)
        except ValueError:
            degrees = 1.0
        if degrees % 90:
            raise files.wrong(files.path(*ROTATIONS), f"the rotation {row['Rotation']!r}", "multiples of 90 degrees")
        if degrees % 360:
            turns[row["ImageID"]] = int(degrees // 90)
    return turns


def _item(record: dict[str, Any], folder: Path, turns: Mapping[str, int]) -> Item:
    path, number = f"{folder}/{record['image_id']}.jpg", turns.get(record["image_id"], 0)
    visual: Visual = Image(path)
    if number:
        visual = Deferred(f"{path} turned by {90 * number} degrees", functools.partial(_turned, path, number))
    return Item(
        id=str(record["question_id"]),
        visual=visual,
        prefix=question(record["question"]),
        answer=one_line(most_common(record["answers"])),
        references=tuple(record["answers"]),
        extra={"question_id": record["question_id"]},
    )


def _turned(path: str, turns: int) -> np.ndarray:
    """Reads an image and turns it counterclockwise. What a camera noted in the file does not count: the list of rotations is of the stored pixels."""
    with PIL.Image.open(io.BytesIO(Path(path).read_bytes())) as image:
        return np.ascontiguousarray(np.rot90(np.asarray(image.convert("RGB")), turns))
