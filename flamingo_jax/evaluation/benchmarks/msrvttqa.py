"""MSRVTT-QA: top-1 accuracy on the test split (paper, Table 6); 10,000 clips of YouTube."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks import question_pairs, video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.metrics.exact_match import TOP1


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the training questions, or 72,821 test questions."""
    videos = video_files.find(files, *files.folders)
    return question_pairs.items(files, split, videos, lambda id: [f"video{id}"])


MSRVTTQA = Benchmark(
    name="msrvttqa",
    title="MSRVTTQA",
    metrics=(TOP1,),
    visual="video",
    queries="test",
    files=question_pairs.FILES,
    folders=("videos", "video"),
    download="github.com/xudejing/video-question-answering (MSRVTT-QA), and the clips of MSR-VTT "
    "(train_val_videos.zip, test_videos.zip)",
    layout="""
        train_qa.json
        test_qa.json
        videos/   (or video/; folders in it are looked into)
          video0.mp4, ...
    """,
    items=_items,
    published=at_shots(
        {
            "Flamingo-3B": (11.0, 14.9, 19.6, 23.4, 25.6),
            "Flamingo-9B": (13.7, 18.2, 23.9, 27.6, 29.4),
            "Flamingo-80B": (17.4, 23.9, 27.6, 30.0, 31.0),
        }
    ),
    fine_tuned_sota=46.8,
    zero_few_shot_sota=19.2,
    is_youtube=True,
)
