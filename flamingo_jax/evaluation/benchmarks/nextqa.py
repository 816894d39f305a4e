"""NExT-QA, open-ended: WUPS on the 9,178 test questions (paper, Table 6).

The files are those of NExT-OE. Where add_reference_answer_test.json has a second answer, a prediction is compared with both, and the better counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Video

DOWNLOAD = "github.com/doc-doc/NExT-OE (dataset/nextqa), and the videos that github.com/doc-doc/NExT-QA links to"
LAYOUT = """
train.csv
test.csv
add_reference_answer_test.json
NExTVideo/   (or videos/; folders in it are looked into)
  1164/4010069381.mp4, ...
"""
SECOND_ANSWERS = "add_reference_answer_test.json"


@dataclasses.dataclass(frozen=True)
class NextQA:
    """NExT-OE in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "nextqa"
    metrics: ClassVar[tuple[str, ...]] = ("wups",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 37,523 training questions."""
        return self._items("train", {})

    def test(self) -> Sequence[Item]:
        """The test questions."""
        files = self._files()
        second = files.json(SECOND_ANSWERS)
        if not isinstance(second, dict) or not all(isinstance(each, dict) for each in second.values()):
            raise files.wrong(files.path(SECOND_ANSWERS), "no answers by video and question", "the second answers")
        return self._items("test", second)

    def _files(self) -> Files:
        return Files(self.directory, self.name, DOWNLOAD, LAYOUT)

    def _items(self, split: str, second: Mapping[str, Mapping[str, str]]) -> Sequence[Item]:
        files = self._files()
        rows = _rows(files, split)
        if split != "train" and files.has("train.csv"):
            test, train = ({row["video"] for row in each} for each in (rows, _rows(files, "train")))
            video_files.check_disjoint(files, files.path(f"{split}.csv"), test, train)
        videos = video_files.find(files, "NExTVideo", "videos", "video")
        found = videos.of(rows, lambda row: [row["video"]], files.path(f"{split}.csv"))
        return [_item(row, path, second.get(row["video"], {}).get(row["qid"])) for row, path in found]


def _rows(files: Files, split: str) -> list[dict[str, str]]:
    return files.csv(f"{split}.csv", columns=("video", "question", "answer", "qid", "type"))


def _item(row: dict[str, str], path: Path, additional: str | None) -> Item:
    extra: dict[str, Any] = {"question_type": row["type"], "additional": additional}
    return Item(
        id=f"{row['video']}/{row['qid']}/{row['type']}",  # train.csv has three question ids twice, of different types
        visual=Video(path),
        prefix=question(row["question"]),
        answer=one_line(row["answer"]),
        extra=extra,
    )
