"""Kinetics-700, the edition of 2020: the mean of top-1 and top-5 accuracy on the validation split (paper, Tables 6 and 7).

Clips of ten seconds, named by the video and the seconds that they are cut from; by class in folders, or all in one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.lazy_items import LazyItems
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.inference.prompt import Video

DOWNLOAD = "github.com/cvdfoundation/kinetics-dataset (Kinetics-700-2020)"
LAYOUT = """
train.csv
val.csv   (or validate.csv)
train/   (folders in it are looked into)
  abseiling/--3ouPhoy2A_000020_000030.mp4, ...
val/
  abseiling/4YTwq0-73Y_000044_000054.mp4, ...
"""
COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
SPLITS = {"train": ("train",), "test": ("val", "validate")}


@dataclasses.dataclass(frozen=True)
class Kinetics700:
    """Kinetics-700-2020 in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "kinetics700"
    metrics: ClassVar[tuple[str, ...]] = ("top1_top5",)
    chance: ClassVar[float | None] = (1 / 700 + 5 / 700) / 2
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The training clips."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The validation clips, up to 50 of each class."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        names = [f"{folder}{name}.csv" for folder in ("", "annotations/") for name in SPLITS[split]]
        rows, path = files.csv(*names, columns=COLUMNS), files.path(*names)
        if not rows or (others := {row["split"] for row in rows} - set(SPLITS[split])):
            raise files.wrong(path, f"the split {', '.join(sorted(others))}" if rows else "no clip", SPLITS[split][0])
        classes = tuple(sorted({row["label"] for row in rows}))
        clips = [(_clip(files, path, row), row["label"]) for row in rows]
        found = video_files.find(files, *SPLITS[split]).of(clips, lambda clip: [clip[0]], path)
        return LazyItems(len(found), lambda number: _item(*found[number], split, classes))


def _clip(files: Files, path: Path, row: dict[str, str]) -> str:
    start, end = video_files.segment(files, path, (row["time_start"], row["time_end"]))
    return f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"


def _item(clip: tuple[str, str], path: Path, split: str, classes: tuple[str, ...]) -> Item:
    name, label = clip
    return Item(
        id=f"{split}/{label}/{name}",
        visual=Video(path),
        prefix=OUTPUT,
        answer=label,
        references=(label,),
        candidates=classes,
        label=label,
    )
