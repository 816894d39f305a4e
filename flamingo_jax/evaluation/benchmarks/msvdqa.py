"""MSVD-QA: top-1 accuracy on the test split (paper, Table 6); 1,970 short clips of YouTube.

The file of a clip has the name that MSVD gives it ("mv89psg6zh4_33_46", see youtube_mapping.txt),
or "vid1".
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks import question_pairs, video_files
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, at_shots
from flamingo_jax.evaluation.metrics.exact_match import TOP1


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the questions about 1,200 training clips, or about 670 test clips."""
    videos = video_files.find(files, *files.folders)
    official = _mapping(files)

    def names(id: int) -> list[str]:
        return [each for each in (official.get(f"vid{id}"), f"vid{id}") if each]

    def source(id: int) -> str:
        """The video of the clip: "mv89psg6zh4_33_46" -> "mv89psg6zh4"."""
        return official.get(f"vid{id}", "").rsplit("_", 2)[0]

    return question_pairs.items(files, split, videos, names, source)


def _mapping(files: Files) -> dict[str, str]:
    """Reads {"vid1": name of the clip}; a line of the file has the name first."""
    if not files.has("youtube_mapping.txt"):
        return {}
    lines = files.text("youtube_mapping.txt").splitlines()
    pairs = [line.split() for line in lines if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise files.wrong(
            files.path("youtube_mapping.txt"),
            "a line without two words",
            "lines such as 'mv89psg6zh4_33_46 vid1'",
        )
    files.check_ids(files.path("youtube_mapping.txt"), (vid for _, vid in pairs))
    return {vid: name for name, vid in pairs}


MSVDQA = Benchmark(
    name="msvdqa",
    title="MSVDQA",
    metrics=(TOP1,),
    visual="video",
    queries="test",
    files=question_pairs.FILES,
    folders=("YouTubeClips", "video", "videos"),
    download="github.com/xudejing/video-question-answering (MSVD-QA), and the clips from "
    "www.cs.utexas.edu/users/ml/clamp/videoDescription (YouTubeClips)",
    layout="""
        train_qa.json
        test_qa.json
        youtube_mapping.txt
        YouTubeClips/   (or video/)
          mv89psg6zh4_33_46.avi, ...   (or vid1.avi, ...)
    """,
    items=_items,
    published=at_shots(
        {
            "Flamingo-3B": (27.5, 33.0, 37.0, 40.2, 42.6),
            "Flamingo-9B": (30.2, 36.2, 40.8, 44.5, 47.2),
            "Flamingo-80B": (35.6, 41.7, 45.5, 48.4, 52.3),
        }
    ),
    fine_tuned_sota=47.9,
    zero_few_shot_sota=35.2,
    is_dev=True,
    is_youtube=True,
)
