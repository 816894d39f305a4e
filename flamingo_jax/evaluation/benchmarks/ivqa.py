"""iVQA: iVQA accuracy on the 2,000 questions of the test split (paper, Table 6).

Five annotators answered each question. The CSV files have the columns video_id, question, answer1
.. answer5, start and end: the seconds of a segment in a video of HowTo100M. The file of a video is
the whole video (video_id), of which the model gets the segment, or the segment alone
(video_id_start_end).
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, most_common, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.ivqa_accuracy import IVQA_ACCURACY
from flamingo_jax.inference.prompt import Video

ANSWERS = tuple(f"answer{number}" for number in range(1, 6))


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    rows = list(enumerate(video_files.rows_of(files, split, _rows, lambda row: row["video_id"])))
    # The rows have no ids of their own.
    asked = ((*_names(row), row["question"]) for _, row in rows)
    files.check_ids(files.annotation_path(split), (" ".join(each) for each in asked))
    return [
        Item(
            id=f"{split}/{number}",
            visual=_visual(files, split, row, path),
            prefix=question(row["question"]),
            answer=one_line(most_common([row[name] for name in ANSWERS])),
            references=tuple(row[name] for name in ANSWERS),
            source=row["video_id"],
        )
        for (number, row), path in video_files.with_videos(
            files, split, rows, lambda row: _names(row[1])
        )
    ]


def _rows(files: Files, split: FileSplit) -> list[dict[str, str]]:
    return files.rows(split, ("video_id", "question", *ANSWERS))


def _names(row: dict[str, str]) -> list[str]:
    video, start, end = row["video_id"], row.get("start", ""), row.get("end", "")
    return [video, f"{video}_{start}_{end}"] if start and end else [video]


def _visual(files: Files, split: FileSplit, row: dict[str, str], path: Path) -> Video:
    if path.stem != row["video_id"] or not (row.get("start") and row.get("end")):
        return Video(path)
    return Video(
        path, *video_files.segment(files, files.annotation_path(split), (row["start"], row["end"]))
    )


IVQA = Benchmark(
    name="ivqa",
    title="iVQA",
    metrics=(IVQA_ACCURACY,),
    visual="video",
    queries="test",
    files={"train": ("train.csv",), "test": ("test.csv",)},
    folders=("videos", "video"),
    download="antoyang.github.io/just-ask.html (iVQA), and the videos from YouTube",
    layout="""
        train.csv
        test.csv
        videos/   (or video/)
          kTbTMBPvMqg.mp4, ...   (or segments: kTbTMBPvMqg_10_17.mp4, ...)
    """,
    items=_items,
    published=at_shots(
        {
            "Flamingo-3B": (32.7, 35.7, 36.8, 37.4, 37.7),
            "Flamingo-9B": (35.2, 37.7, 40.0, 41.5, 40.7),
            "Flamingo-80B": (40.7, 44.1, 44.8, 45.2, 45.3),
        }
    ),
    fine_tuned_sota=35.4,
    zero_few_shot_sota=12.2,
    is_youtube=True,
)
