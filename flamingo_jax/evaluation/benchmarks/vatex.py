"""VATEX captions, the English ones: CIDEr on the public test split (paper, Table 6); clips of ten seconds, ten captions each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.inference.prompt import Video

DOWNLOAD = "eric-xw.github.io/vatex-website/download.html, and the clips from YouTube"
LAYOUT = """
vatex_training_v1.0.json
vatex_public_test_english_v1.1.json
videos/   (folders in it are looked into)
  Ptf_2VRj-V0_000122_000132.mp4, ...   (the clip of 10 seconds, under its videoID)
"""
FILES = {"train": "vatex_training_v1.0.json", "test": "vatex_public_test_english_v1.1.json"}


@dataclasses.dataclass(frozen=True)
class Vatex:
    """VATEX in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "vatex"
    metrics: ClassVar[tuple[str, ...]] = ("cider",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 25,991 training clips."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The 6,000 public test clips."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        rows = _rows(files, split)
        if split != "train" and files.has(FILES["train"]):
            test, train = ({row["videoID"] for row in each} for each in (rows, _rows(files, "train")))
            video_files.check_disjoint(files, files.path(FILES[split]), test, train)
        found = video_files.find(files, "videos", "video").of(
            rows, lambda row: [row["videoID"]], files.path(FILES[split])
        )
        return [
            Item(
                id=row["videoID"],
                visual=Video(path),
                prefix=OUTPUT,
                answer=one_line(row["enCap"][0]),
                references=tuple(row["enCap"]),
            )
            for row, path in found
        ]


def _rows(files: Files, split: str) -> list[dict[str, Any]]:
    path = files.path(FILES[split])
    rows = records(files.json(FILES[split]), {"videoID": str, "enCap": list}, path)
    if not all(row["enCap"] for row in rows):
        raise files.wrong(path, "a clip without captions", "ten captions each")
    return rows
