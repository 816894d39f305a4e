"""Hateful Memes: area under the ROC curve of P(yes) on the seen test split (paper, Table 6).

    <image>is an image with written: "look who is here" on it. Is it hateful? Answer: no

The one benchmark whose prompt holds the text of the image. Close-ended: "yes" and "no" are ranked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks.annotations import Files, Types, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import hateful_meme
from flamingo_jax.inference.prompt import Image

DOWNLOAD = "hatefulmemeschallenge.com (the data of phase 1 and 2, with the labels of the test split)"
LAYOUT = """
train.jsonl
test_seen.jsonl
img/
  42953.png, ...
"""
ANSWERS = ("yes", "no")  # of labels 1 and 0


@dataclasses.dataclass(frozen=True)
class HatefulMemes:
    """Hateful Memes in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "hateful_memes"
    metrics: ClassVar[tuple[str, ...]] = ("roc_auc",)
    chance: ClassVar[float | None] = 0.5
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 8,500 training memes."""
        return [self._item(each) for each in self._records("train.jsonl")]

    def test(self) -> Sequence[Item]:
        """The 1,000 memes of the seen test split."""
        found, train = self._records("test_seen.jsonl"), {each["id"] for each in self._records("train.jsonl")}
        if shared := [each["id"] for each in found if each["id"] in train]:
            got = f"{len(shared)} memes that are in train.jsonl too (meme {shared[0]})"
            raise self._files.wrong(self._files.path("test_seen.jsonl"), got, "other memes than train.jsonl")
        return [self._item(each) for each in found]

    @property
    def _files(self) -> Files:
        return Files(self.directory, self.name, DOWNLOAD, LAYOUT)

    def _records(self, name: str) -> list[dict[str, Any]]:
        fields: dict[str, Types] = {"id": (int, str), "img": str, "label": int, "text": str}
        found, path = records(self._files.json_lines(name), fields, self._files.path(name)), self._files.path(name)
        if wrong := [each["label"] for each in found if each["label"] not in (0, 1)]:
            raise self._files.wrong(path, f"the label {wrong[0]}", "0 or 1")
        self._files.path(found[0]["img"])
        return found

    def _item(self, record: dict[str, Any]) -> Item:
        answer = ANSWERS[1 - record["label"]]
        return Item(
            id=str(record["id"]),
            visual=Image(f"{self.directory}/{record['img']}"),
            prefix=hateful_meme(record["text"]),
            answer=answer,
            references=(answer,),
            candidates=ANSWERS,
            extra={"positive": "yes"},
        )
