"""Kinetics-700, the 2020 edition: classification by ranking the class names (paper, Table 7).

The metric is the mean of top-1 and top-5 accuracy on the validation split (paper, Table 6). Clips
have ten seconds. Their files are named after the video and the seconds, and are in a folder per
class or all in one folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks import class_templates, video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, LazyItems, Series
from flamingo_jax.evaluation.benchmarks.contrastive_task import ContrastiveTask
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.evaluation.metrics.top1_top5 import TOP1_TOP5
from flamingo_jax.inference.prompt import Video

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the training clips, or up to 50 validation clips of each class."""
    rows, path, names = (
        files.rows(split, COLUMNS),
        files.annotation_path(split),
        files.splits[split],
    )
    if not rows or (others := {row["split"] for row in rows} - set(names)):
        raise files.wrong(
            path, f"the split {', '.join(sorted(others))}" if rows else "no clip", names[0]
        )
    classes = tuple(sorted({row["label"] for row in rows}))
    clips = [(_clip(files, path, row), row["label"]) for row in rows]
    files.check_ids(path, (f"{label}/{clip}" for clip, label in clips))
    found = video_files.find(files, *names).of(clips, lambda clip: [clip[0]], path)
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
        source=name.rsplit("_", 2)[0],  # the video of the clip
    )


KINETICS700 = Benchmark(
    name="kinetics700",
    title="Kinetics700",
    metrics=(TOP1_TOP5,),
    visual="video",
    queries="val",
    splits={"train": ("train",), "test": ("val", "validate")},
    files={
        "train": ("train.csv", "annotations/train.csv"),
        "test": ("val.csv", "validate.csv", "annotations/val.csv", "annotations/validate.csv"),
    },
    download="github.com/cvdfoundation/kinetics-dataset (Kinetics-700-2020)",
    layout="""
        train.csv
        val.csv   (or validate.csv)
        train/   (folders in it are looked into)
          abseiling/--3ouPhoy2A_000020_000030.mp4, ...
        val/
          abseiling/4YTwq0-73Y_000044_000054.mp4, ...
    """,
    items=_items,
    chance=(1 / 700 + 5 / 700) / 2,
    published=(
        Series("contrastive NFNet-F6", {0: 62.9}, ""),
        Series("Flamingo-3B", {8: 55.9, 16: 56.9}, "rices", "1 per class"),
        Series("Flamingo-3B", {16: 58.3}, "rices", "5 per class"),
        Series("Flamingo-9B", {8: 58.0, 16: 59.4}, "rices", "1 per class"),
        Series("Flamingo-9B", {16: 60.9}, "rices", "5 per class"),
        Series("Flamingo-80B", {16: 51.2}, "random", "at most 0.02 per class"),
        Series("Flamingo-80B", {8: 60.4, 16: 62.7}, "rices", "1 per class"),
        Series("Flamingo-80B", {16: 63.5}, "rices", "5 per class"),
        Series("Flamingo-80B", {16: 64.2}, "rices", "5 per class, ensembling"),
    ),
    table=7,
    fine_tuned_sota=89.0,
    zero_few_shot_sota=69.6,
    contrastive=ContrastiveTask(
        "zero_shot",
        queries="the validation split, of what was public in April 2022",
        metrics=("top1_top5", "top1", "top5"),
        templates=class_templates.VIDEOS,
    ),
    is_youtube=True,
)
