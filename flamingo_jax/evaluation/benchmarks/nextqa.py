"""NExT-QA, open-ended: WUPS on the 9,178 test questions (paper, Table 6).

The files are those of NExT-OE. add_reference_answer_test.json has a second answer to some
questions: the metric takes the better of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.wups import WUPS
from flamingo_jax.inference.prompt import Video

SECOND_ANSWERS = "add_reference_answer_test.json"


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 37,523 training questions, or 9,178 test questions."""
    second = _second_answers(files) if split == "test" else {}
    rows = video_files.rows_of(files, split, _rows, lambda row: row["video"])
    found = video_files.with_videos(files, split, rows, lambda row: [row["video"]])
    return [_item(row, path, second.get(row["video"], {}).get(row["qid"])) for row, path in found]


def _second_answers(files: Files) -> Mapping[str, Mapping[str, str]]:
    """Reads {video: {question id: answer}}."""
    second = files.json(SECOND_ANSWERS, unique_names=True)
    if not isinstance(second, dict) or not all(isinstance(each, dict) for each in second.values()):
        raise files.wrong(
            files.path(SECOND_ANSWERS), "no answers by video and question", "the second answers"
        )
    return second


def _rows(files: Files, split: FileSplit) -> list[dict[str, str]]:
    return files.rows(split, ("video", "question", "answer", "qid", "type"))


def _item(row: dict[str, str], path: Path, additional: str | None) -> Item:
    extra: dict[str, Any] = {"question_type": row["type"], "additional": additional}
    return Item(
        # three question ids occur twice in train.csv, with different types
        id=f"{row['video']}/{row['qid']}/{row['type']}",
        visual=Video(path),
        prefix=question(row["question"]),
        answer=one_line(row["answer"]),
        extra=extra,
    )


NEXTQA = Benchmark(
    name="nextqa",
    title="NextQA",
    metrics=(WUPS,),
    visual="video",
    queries="test",
    files={"train": ("train.csv",), "test": ("test.csv",)},
    folders=("NExTVideo", "videos", "video"),
    download="github.com/doc-doc/NExT-OE (dataset/nextqa), and the videos that github.com/doc-"
    "doc/NExT-QA links to",
    layout="""
        train.csv
        test.csv
        add_reference_answer_test.json
        NExTVideo/   (or videos/; folders in it are looked into)
          1164/4010069381.mp4, ...
    """,
    items=_items,
    published=at_shots(
        {
            "Flamingo-3B": (21.3, 22.4, 23.9, 25.2, 26.1),
            "Flamingo-9B": (23.0, 24.7, 25.8, 27.6, 28.4),
            "Flamingo-80B": (26.7, 30.8, 32.3, 32.9, 33.5),
        }
    ),
    fine_tuned_sota=25.2,
)
