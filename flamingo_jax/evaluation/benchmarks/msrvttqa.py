"""MSRVTT-QA: top-1 accuracy on the test split (paper, Table 6); clips of YouTube, 10,000 in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import question_pairs, video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item

DOWNLOAD = "github.com/xudejing/video-question-answering (MSRVTT-QA), and the clips of MSR-VTT (train_val_videos.zip, test_videos.zip)"
LAYOUT = """
train_qa.json
test_qa.json
videos/   (or video/; folders in it are looked into)
  video0.mp4, ...
"""


@dataclasses.dataclass(frozen=True)
class MSRVTTQA:
    """MSRVTT-QA in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "msrvttqa"
    metrics: ClassVar[tuple[str, ...]] = ("top1",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The training questions."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The 72,821 test questions."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        videos = video_files.find(files, "videos", "video")
        return question_pairs.items(files, split, videos, lambda id: [f"video{id}"])
