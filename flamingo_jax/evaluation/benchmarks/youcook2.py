"""YouCook2 captions: CIDEr on the 3,492 segments of the validation split (paper, Table 6).

A recipe's video has several annotated segments of some seconds up to minutes; each is an item with one sentence. The paper says no more than "CIDEr":
segments are taken as annotated, and each is captioned on its own, as is usual.
"""

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

DOWNLOAD = "youcook2.eecs.umich.edu/download (YouCookII annotations), and the videos from YouTube"
ANNOTATIONS = ("youcookii_annotations_trainval.json", "annotations/youcookii_annotations_trainval.json")
LAYOUT = """
youcookii_annotations_trainval.json
raw_videos/   (or videos/; folders in it are looked into)
  training/101/GLd3aX16zBg.mp4, ...
  validation/101/fn9anlEL4FI.mp4, ...
"""
SUBSETS = {"train": "training", "test": "validation"}


@dataclasses.dataclass(frozen=True)
class YouCook2:
    """YouCook2 in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "youcook2"
    metrics: ClassVar[tuple[str, ...]] = ("cider",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The segments of the training videos."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The segments of the validation videos."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        rows = _segments(files, SUBSETS[split])
        videos = video_files.find(files, "raw_videos", "videos")
        found = videos.of(rows, lambda row: [row["video"]], files.path(*ANNOTATIONS))
        return [
            Item(
                id=f"{row['video']}/{row['id']}",
                visual=Video(path, *video_files.segment(files, files.path(*ANNOTATIONS), row["segment"])),
                prefix=OUTPUT,
                answer=one_line(row["sentence"]),
                references=(row["sentence"],),
            )
            for row, path in found
        ]


def _segments(files: Files, subset: str) -> list[dict[str, Any]]:
    value, path = files.json(*ANNOTATIONS), files.path(*ANNOTATIONS)
    database = value.get("database") if isinstance(value, dict) else None
    videos = [{"video": name} | each for name, each in database.items()] if isinstance(database, dict) else []
    records(videos, {"subset": str, "annotations": list}, path)
    chosen = [each for each in videos if each["subset"] == subset]
    if not chosen:
        raise files.wrong(path, f"videos of {', '.join(sorted({each['subset'] for each in videos}))} alone", subset)
    segments = [{"video": each["video"]} | segment for each in chosen for segment in each["annotations"]]
    return records(segments, {"id": int, "segment": list, "sentence": str}, path)
