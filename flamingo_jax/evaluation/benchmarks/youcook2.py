"""YouCook2 captions: CIDEr on the 3,492 segments of the validation split (paper, Table 6).

The video of a recipe has several annotated segments, from some seconds to minutes long. Each is an
item with one sentence. The paper says only "CIDEr": as is usual, segments are taken as annotated,
and each is captioned on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_jax.evaluation.benchmarks import video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.evaluation.metrics.cider import CIDER
from flamingo_jax.inference.prompt import Video

ANNOTATIONS = (
    "youcookii_annotations_trainval.json",
    "annotations/youcookii_annotations_trainval.json",
)


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the segments of the training videos, or of the validation videos."""
    rows, path = _segments(files, split), files.annotation_path(split)
    return [
        Item(
            id=f"{row['video']}/{row['id']}",
            visual=Video(video, *video_files.segment(files, path, row["segment"])),
            prefix=OUTPUT,
            answer=one_line(row["sentence"]),
            references=(row["sentence"],),
        )
        for row, video in video_files.with_videos(files, split, rows, lambda row: [row["video"]])
    ]


def _segments(files: Files, split: FileSplit) -> list[dict[str, Any]]:
    value = files.json(*files.annotations[split], unique_names=True)
    path = files.annotation_path(split)
    (subset,) = files.splits[split]
    database = value.get("database") if isinstance(value, dict) else None
    database = database if isinstance(database, dict) else {}
    videos = [{"video": name} | each for name, each in database.items()]
    records(videos, {"subset": str, "annotations": list}, path)
    chosen = [each for each in videos if each["subset"] == subset]
    if not chosen:
        subsets = ", ".join(sorted({each["subset"] for each in videos}))
        raise files.wrong(path, f"videos of {subsets} alone", subset)
    segments = [
        {"video": each["video"]} | segment for each in chosen for segment in each["annotations"]
    ]
    return records(segments, {"id": int, "segment": list, "sentence": str}, path)


YOUCOOK2 = Benchmark(
    name="youcook2",
    title="YouCook2",
    metrics=(CIDER,),
    visual="video",
    queries="val",
    splits={"train": ("training",), "test": ("validation",)},
    files={"train": ANNOTATIONS, "test": ANNOTATIONS},  # of both splits
    folders=("raw_videos", "videos"),
    download="youcook2.eecs.umich.edu/download (YouCookII annotations), and the videos from "
    "YouTube",
    layout="""
        youcookii_annotations_trainval.json
        raw_videos/   (or videos/; folders in it are looked into)
          training/101/GLd3aX16zBg.mp4, ...
          validation/101/fn9anlEL4FI.mp4, ...
    """,
    items=_items,
    published=at_shots(
        {
            "Flamingo-3B": (55.8, 64.6, 68.0, 73.2, 76.7),
            "Flamingo-9B": (55.0, 70.8, 75.0, 77.2, 77.3),
            "Flamingo-80B": (60.1, 74.5, 80.7, 84.2, 86.8),
        }
    ),
    fine_tuned_sota=138.7,
    is_youtube=True,
)
