"""VATEX captions, in English: CIDEr on the public test split (paper, Table 6).

Each clip lasts ten seconds and has ten captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.evaluation.metrics.cider import CIDER
from flamingo_jax.inference.prompt import Video


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 25,991 training clips, or 6,000 public test clips."""
    rows = video_files.rows_of(files, split, _rows, lambda row: row["videoID"])
    return [
        Item(
            id=row["videoID"],
            visual=Video(path),
            prefix=OUTPUT,
            answer=one_line(row["enCap"][0]),
            references=tuple(row["enCap"]),
            source=row["videoID"].rsplit("_", 2)[0],  # the video of the clip
        )
        for row, path in video_files.with_videos(files, split, rows, lambda row: [row["videoID"]])
    ]


def _rows(files: Files, split: FileSplit) -> list[dict[str, Any]]:
    rows = files.records(split, {"videoID": str, "enCap": list})
    if not all(row["enCap"] for row in rows):
        raise files.wrong(
            files.annotation_path(split), "a clip without captions", "ten captions each"
        )
    return rows


VATEX = Benchmark(
    name="vatex",
    title="VATEX",
    metrics=(CIDER,),
    visual="video",
    queries="test",
    files={
        "train": ("vatex_training_v1.0.json",),
        "test": ("vatex_public_test_english_v1.1.json",),
    },
    folders=("videos", "video"),
    download="eric-xw.github.io/vatex-website/download.html, and the clips from YouTube",
    layout="""
        vatex_training_v1.0.json
        vatex_public_test_english_v1.1.json
        videos/   (folders in it are looked into)
          Ptf_2VRj-V0_000122_000132.mp4, ...   (the clip of 10 seconds, under its videoID)
    """,
    items=_items,
    published=at_shots(
        {
            "Flamingo-3B": (40.1, 50.0, 54.5, 57.1, 59.2),
            "Flamingo-9B": (39.5, 51.7, 55.2, 58.5, 57.4),
            "Flamingo-80B": (46.7, 56.0, 60.6, 62.8, 65.1),
        }
    ),
    fine_tuned_sota=76.3,
    is_dev=True,
    is_youtube=True,
)
