"""MSVD-QA: top-1 accuracy on the test split (paper, Table 6); short clips of YouTube, 1,970 in all.

A clip is found under the name that MSVD gives it ("mv89psg6zh4_33_46", as youtube_mapping.txt says), or as "vid1".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import question_pairs, video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item

DOWNLOAD = "github.com/xudejing/video-question-answering (MSVD-QA), and the clips from www.cs.utexas.edu/users/ml/clamp/videoDescription (YouTubeClips)"
LAYOUT = """
train_qa.json
test_qa.json
youtube_mapping.txt
YouTubeClips/   (or video/)
  mv89psg6zh4_33_46.avi, ...   (or vid1.avi, ...)
"""


@dataclasses.dataclass(frozen=True)
class MSVDQA:
    """MSVD-QA in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "msvdqa"
    metrics: ClassVar[tuple[str, ...]] = ("top1",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The questions about 1,200 clips."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The questions about 670 other clips."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        videos = video_files.find(files, "YouTubeClips", "video", "videos")
        official = _mapping(files)
        return question_pairs.items(
            files, split, videos, lambda id: [each for each in (official.get(f"vid{id}"), f"vid{id}") if each]
        )


def _mapping(files: Files) -> dict[str, str]:
    """vid1 -> the clip's name; each line of the file has them in the other order."""
    if not files.has("youtube_mapping.txt"):
        return {}
    pairs = [line.split() for line in files.text("youtube_mapping.txt").splitlines() if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise files.wrong(
            files.path("youtube_mapping.txt"), "a line without two words", "lines such as 'mv89psg6zh4_33_46 vid1'"
        )
    return {vid: name for name, vid in pairs}
