"""STAR: which of four answers to a question about a situation; top-1 accuracy on the 7,098 validation questions (paper, Table 6).

The model sees the question and the seconds from start to end of a video of Charades. The annotated graphs of the situation ("situations") and
the programs that made questions and choices are not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, Types, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Video

DOWNLOAD = "bobbywu.com/STAR (questions), and prior.allenai.org/projects/charades (the videos, scaled to 480p)"
LAYOUT = """
STAR_train.json
STAR_val.json
Charades_v1_480/   (or Charades_v1/, videos/)
  6H78U.mp4, ...
"""
FIELDS: dict[str, Types] = {
    "question_id": str,
    "question": str,
    "answer": str,
    "video_id": str,
    "start": (int, float),
    "end": (int, float),
    "choices": list,
}


@dataclasses.dataclass(frozen=True)
class Star:
    """STAR in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "star"
    metrics: ClassVar[tuple[str, ...]] = ("ranking",)
    chance: ClassVar[float | None] = 1 / 4
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The training questions."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The validation questions; the answers of the test split are hidden."""
        return self._items("val")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        rows, path = _rows(files, split), files.path(f"STAR_{split}.json")
        if split != "train" and files.has("STAR_train.json"):
            test, train = ({row["question_id"] for row in each} for each in (rows, _rows(files, "train")))
            video_files.check_disjoint(files, path, test, train)
        videos = video_files.find(files, "Charades_v1_480", "Charades_v1", "videos")
        found = videos.of(rows, lambda row: [row["video_id"]], path)
        return [_item(files, row, video, path) for row, video in found]


def _rows(files: Files, split: str) -> list[dict[str, Any]]:
    name = f"STAR_{split}.json"
    return records(files.json(name), FIELDS, files.path(name))


def _item(files: Files, row: dict[str, Any], video: Path, path: Path) -> Item:
    candidates = tuple(one_line(each["choice"]) for each in records(row["choices"], {"choice": str}, path))
    answer = one_line(row["answer"])
    if answer not in candidates:
        raise files.wrong(
            path, f"the answer {answer!r} to {row['question_id']}, with the choices {candidates}", "one of them"
        )
    return Item(
        id=row["question_id"],
        visual=Video(video, *video_files.segment(files, path, (row["start"], row["end"]))),
        prefix=question(row["question"]),
        answer=answer,
        references=(answer,),
        candidates=candidates,
        extra={"question_type": row["question_id"].split("_")[0]},  # Interaction, Sequence, Prediction or Feasibility
    )
