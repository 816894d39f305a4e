"""Finds the video files of a benchmark by name, and leaves out items without a video.

    annotations    abc, def, ghi
    files          videos/abc.mp4, videos/val/101/ghi.webm
    found          abc, ghi          log: "1 of 3 items ... are left out"

Most of these benchmarks name videos of YouTube, of which some disappear every year: the paper had
those that were public in April 2022, and later downloads have fewer. The items are then not those
of published scores, so the log says how many are missing. A damaged file stops the evaluation with
an error that names it; without the file, its items are left out too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.files import without_clutter
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.inference.visuals import VIDEO_SUFFIXES

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VideoFiles:
    """The videos of a benchmark; see `find`.

    Attributes:
        files: the benchmark's directory.
        folder: folder of the videos.
        paths: name without suffix -> file.
    """

    files: Files
    folder: Path
    paths: Mapping[str, Path]

    def of(
        self, rows: Sequence[T], names: Callable[[T], Sequence[str]], annotations: PathLike
    ) -> list[tuple[T, Path]]:
        """Pairs annotated rows with their videos.

        Rows without a video are left out, and the log says how many.

        Args:
            rows: rows of the annotations.
            names: row -> possible names of its video, without suffix.
            annotations: file of the rows.

        Raises:
            AnnotationError: there are no rows, or no row has a video.
        """
        if not rows:
            raise self.files.wrong(annotations, "no items", "some")
        pairs = [
            (row, next((self.paths[name] for name in names(row) if name in self.paths), None))
            for row in rows
        ]
        found = [(row, path) for row, path in pairs if path is not None]
        if not found:
            name = (self.folder / f"{names(rows[0])[0]}.mp4").relative_to(
                Path(self.files.directory)
            )
            raise self.files.missing(str(name))
        if missing := [names(row)[0] for row, path in pairs if path is None]:
            self.files.left_out["missing_video"] += len(missing)
            some = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
            _log.warning(
                "The benchmark %r: %d of %d items of %s are left out, their videos are not there: "
                "%s.",
                *(self.files.benchmark, len(missing), len(rows), annotations, some),
            )
        return found


def find(files: Files, *folders: str) -> VideoFiles:
    """Finds the video files below the first of several possible folders that exists.

    Of two files with the same name, the first in alphabetical order is taken.

    Args:
        files: the benchmark's directory.
        *folders: relative to the directory, the official one first.

    Raises:
        AnnotationError: no folder exists.
    """
    folder, found = files.path(*folders), dict[str, Path]()
    for path in _walk(folder):
        found.setdefault(path.name[: -len(path.suffix)], path)
    return VideoFiles(files, folder, found)


def _walk(folder: Path) -> Iterator[Path]:
    for path, is_folder in without_clutter(folder):
        if not is_folder and path.name.lower().endswith(VIDEO_SUFFIXES):
            yield path
        elif is_folder and not path.suffix:
            yield from _walk(path)


def segment(files: Files, path: PathLike, values: Sequence[Any]) -> tuple[float, float]:
    """Returns start and end of a segment in seconds; annotations have numbers, or their text.

    Raises:
        AnnotationError: the values are not two numbers, or the end is not after the start.
    """
    try:
        start, end = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise files.wrong(
            path, f"the segment {values!r}", "its start and end in seconds"
        ) from error
    if not 0 <= start < end < float("inf"):
        raise files.wrong(path, f"the segment {values!r}", "a start, and an end behind it")
    return start, end


def rows_of(
    files: Files,
    split: FileSplit,
    read: Callable[[Files, FileSplit], list[T]],
    key: Callable[[T], str],
) -> list[T]:
    """Reads the annotated rows of a split; checks that a test split is not the training split.

    Args:
        files: the benchmark's directory.
        split: "train" or "test".
        read: reads the rows of a split.
        key: row -> the video, or the question, that only one split has.

    Raises:
        AnnotationError: a file is missing, damaged, or of another split.
    """
    rows = read(files, split)
    if split == "test" and files.has(*files.annotations["train"]):
        test, train = ({key(row) for row in each} for each in (rows, read(files, "train")))
        check_disjoint(files, files.annotation_path("test"), test, train)
    return rows


def with_videos(
    files: Files, split: FileSplit, rows: Sequence[T], names: Callable[[T], Sequence[str]]
) -> list[tuple[T, Path]]:
    """Pairs the rows of a split with the videos in the benchmark's folder.

    Args:
        files: the benchmark's directory.
        split: "train" or "test".
        rows: rows of its annotations.
        names: row -> possible names of its video, without suffix.

    Raises:
        AnnotationError: no folder exists, there are no rows, or no row has a video.
    """
    return find(files, *files.folders).of(rows, names, files.annotation_path(split))


def check_disjoint(
    files: Files, path: PathLike, test: Collection[str], train: Collection[str]
) -> None:
    """Checks that a test file shares no video, or question, with the training file.

    Raises:
        AnnotationError: they share some; one of them is the file of another split.
    """
    if shared := set(test) & set(train):
        got = f"{len(shared)} of {len(set(test))} from the training split ({min(shared)})"
        raise files.wrong(path, got, "none")
