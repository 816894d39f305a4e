"""STAR: choice of one of four answers to a question about a situation (paper, Table 6).

The metric is the top-1 accuracy on the 7,098 validation questions. The model gets the question, and
the seconds from start to end of a video of Charades. The annotated graphs of the situation
("situations"), and the programs that made questions and choices, are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import (
    Files,
    FileSplit,
    Types,
    one_line,
    records,
)
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.inference.prompt import Video

FIELDS: dict[str, Types] = {
    "question_id": str,
    "question": str,
    "answer": str,
    "video_id": str,
    "start": (int, float),
    "end": (int, float),
    "choices": list,
}


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the training questions, or the validation questions.

    The answers of the test split are hidden.
    """
    rows = video_files.rows_of(files, split, _rows, lambda row: row["question_id"])
    found = video_files.with_videos(files, split, rows, lambda row: [row["video_id"]])
    return [_item(files, row, video, files.annotation_path(split)) for row, video in found]


def _rows(files: Files, split: FileSplit) -> list[dict[str, Any]]:
    return files.records(split, FIELDS)


def _item(files: Files, row: dict[str, Any], video: Path, path: Path) -> Item:
    choices = records(row["choices"], {"choice": str}, path)
    candidates = tuple(one_line(each["choice"]) for each in choices)
    answer = one_line(row["answer"])
    if answer not in candidates:
        raise files.wrong(
            path,
            f"the answer {answer!r} to {row['question_id']}, with the choices {candidates}",
            "one of them",
        )
    return Item(
        id=row["question_id"],
        visual=Video(video, *video_files.segment(files, path, (row["start"], row["end"]))),
        prefix=question(row["question"]),
        answer=answer,
        references=(answer,),
        candidates=candidates,
        # Interaction, Sequence, Prediction or Feasibility
        extra={"question_type": row["question_id"].split("_")[0]},
    )


STAR = Benchmark(
    name="star",
    title="STAR",
    metrics=(RANKING,),
    visual="video",
    queries="test",
    own_queries="val",  # the answers of test are hidden
    files={"train": ("STAR_train.json",), "test": ("STAR_val.json",)},
    folders=("Charades_v1_480", "Charades_v1", "videos"),
    download="bobbywu.com/STAR (questions), and prior.allenai.org/projects/charades (the videos, "
    "scaled to 480p)",
    layout="""
        STAR_train.json
        STAR_val.json
        Charades_v1_480/   (or Charades_v1/, videos/)
          6H78U.mp4, ...
    """,
    items=_items,
    chance=1 / 4,
    published=at_shots(
        {
            "Flamingo-3B": (39.6, 41.3, 40.6, 40.1, 41.6),
            "Flamingo-9B": (41.8, 42.8, 43.4, 42.4, 41.2),
            "Flamingo-80B": (39.7, 42.4, 42.3, 41.1, 42.2),
        }
    ),
    fine_tuned_sota=36.7,
    zero_few_shot_sota=39.4,
)
