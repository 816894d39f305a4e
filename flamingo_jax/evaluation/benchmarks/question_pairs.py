"""The annotation format of MSVD-QA and MSRVTT-QA (Xu et al. 2017).

Each split has one JSON list of questions with their answer.

    train_qa.json, test_qa.json    [{"video_id": 1301, "id": 37348,
                                     "question": "what is a man doing?", "answer": "dance"}, ...]

There is one right answer, which is one word: a prediction is right if it is exactly that word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.benchmarks.video_files import VideoFiles
from flamingo_jax.inference.prompt import Video

FILES: dict[FileSplit, tuple[str, ...]] = {"train": ("train_qa.json",), "test": ("test_qa.json",)}
FIELDS = {"video_id": int, "id": int, "question": str, "answer": str}


def items(
    files: Files,
    split: FileSplit,
    videos: VideoFiles,
    names: Callable[[int], Sequence[str]],
    source: Callable[[int], str] = lambda video_id: "",
) -> list[Item]:
    """Reads the questions of a split, in the order of their file.

    Args:
        files: the benchmark's directory.
        split: "train" or "test".
        videos: what `video_files.find` returned.
        names: video_id -> possible names of its video.
        source: video_id -> the video that the clip is from; "": the file.

    Raises:
        AnnotationError: a file is missing, damaged, or of another split; or there are no videos.
    """
    rows = video_files.rows_of(files, split, _rows, lambda row: str(row["video_id"]))
    found = videos.of(rows, lambda row: names(row["video_id"]), files.annotation_path(split))
    return [
        Item(
            id=f"{split}/{row['id']}",
            visual=Video(path),
            prefix=question(row["question"]),
            answer=one_line(row["answer"]),
            source=source(row["video_id"]),
        )
        for row, path in found
    ]


def _rows(files: Files, split: FileSplit) -> list[dict[str, Any]]:
    return files.records(split, FIELDS)
