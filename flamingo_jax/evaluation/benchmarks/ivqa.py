"""iVQA: iVQA accuracy on the test split, 2,000 questions with five annotators' answers each (paper, Table 6).

The CSV files have the columns video_id, question, answer1 .. answer5, and start and end, the seconds of the segment in a video of HowTo100M. A
video is there whole, under its id, and then the segment is seen; or as the segment, under video_id_start_end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, most_common, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Video

DOWNLOAD = "antoyang.github.io/just-ask.html (iVQA), and the videos from YouTube"
LAYOUT = """
train.csv
test.csv
videos/   (or video/)
  kTbTMBPvMqg.mp4, ...   (or segments: kTbTMBPvMqg_10_17.mp4, ...)
"""
ANSWERS = tuple(f"answer{number}" for number in range(1, 6))


@dataclasses.dataclass(frozen=True)
class IVQA:
    """iVQA in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "ivqa"
    metrics: ClassVar[tuple[str, ...]] = ("ivqa_accuracy",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The training questions."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The test questions."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        rows = _rows(files, split)
        if split != "train" and files.has("train.csv"):
            test, train = ({row["video_id"] for row in each} for each in (rows, _rows(files, "train")))
            video_files.check_disjoint(files, files.path(f"{split}.csv"), test, train)
        videos = video_files.find(files, "videos", "video")
        numbered = list(enumerate(rows))
        found = videos.of(numbered, lambda row: _names(row[1]), files.path(f"{split}.csv"))
        return [
            Item(
                id=f"{split}/{number}",
                visual=_visual(files, split, row, path),
                prefix=question(row["question"]),
                answer=one_line(most_common([row[name] for name in ANSWERS])),
                references=tuple(row[name] for name in ANSWERS),
            )
            for (number, row), path in found
        ]


def _rows(files: Files, split: str) -> list[dict[str, str]]:
    return files.csv(f"{split}.csv", columns=("video_id", "question", *ANSWERS))


def _names(row: dict[str, str]) -> list[str]:
    video, start, end = row["video_id"], row.get("start", ""), row.get("end", "")
    return [video, f"{video}_{start}_{end}"] if start and end else [video]


def _visual(files: Files, split: str, row: dict[str, str], path: Path) -> Video:
    if path.stem != row["video_id"] or not (row.get("start") and row.get("end")):
        return Video(path)
    return Video(path, *video_files.segment(files, files.path(f"{split}.csv"), (row["start"], row["end"])))
