"""The video files of a benchmark.

Found by name wherever they lie in its folder, and left out where they are gone.

    annotations: abc, def, ghi        videos/abc.mp4, videos/val/101/ghi.webm        -> abc, ghi    ("1 of 3 items left out")

Most of these benchmarks name videos of YouTube, of which some disappear every year (the paper
evaluated on what was public in April 2022). So whoever downloads them now has fewer; a score is
then not on the same items as a published one, which the log says. A damaged file stops an
evaluation, and is named: remove it, and its items are left out too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.inference.visuals import VIDEO_SUFFIXES

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VideoFiles:
    """The videos of a benchmark; made by `find`.

    Attributes:
        files: the benchmark's directory.
        folder: in which they lie.
        paths: name without suffix -> file.
    """

    files: Files
    folder: Path
    paths: Mapping[str, Path]

    def of(
        self, rows: Sequence[T], names: Callable[[T], Sequence[str]], annotations: PathLike
    ) -> list[tuple[T, Path]]:
        """Pairs annotated rows with their videos.

        Rows whose video is gone are left out, and the log says how many.

        Args:
            rows: of the annotations.
            names: row -> names that its video may have, without suffix.
            annotations: the file that the rows are of.

        Raises:
            AnnotationError: there is no row, or not one video is there.
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
        if gone := [names(row)[0] for row, path in pairs if path is None]:
            _log.warning(
                "The benchmark %r: %d of %d items of %s are left out, their videos are not there: "
                "%s%s.",
                *(
                    self.files.benchmark,
                    len(gone),
                    len(rows),
                    annotations,
                    ", ".join(gone[:3]),
                    ", ..." * (len(gone) > 3),
                ),
            )
        return found


def find(files: Files, *folders: str) -> VideoFiles:
    """The video files below the first of several possible folders that is there.

    Of two with one name the first in alphabetical order.

    Args:
        files: the benchmark's directory.
        *folders: relative to it, the official one first.

    Raises:
        AnnotationError: none of the folders is there.
    """
    folder, found = files.path(*folders), dict[str, Path]()
    for path in _walk(folder):
        found.setdefault(path.name[: -len(path.suffix)], path)
    return VideoFiles(files, folder, found)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(VIDEO_SUFFIXES):
            yield path
        elif not path.suffix and path.is_dir():
            yield from _walk(path)


def segment(files: Files, path: PathLike, values: Sequence[Any]) -> tuple[float, float]:
    """Start and end of a segment in seconds, as annotations have them: numbers, or their text.

    Raises:
        AnnotationError: it is not two numbers, or it ends before it starts.
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
    """Reads the annotated rows of a split.

    Of a test split, checks that it is none of the training split's.

    Args:
        files: the benchmark's directory, with `annotations`.
        split: "train" or "test".
        read: reads the rows of a split.
        key: row -> the video, or the question, that the splits must not share.

    Raises:
        AnnotationError: a file is not there, damaged, or of another split.
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

    Arguments and errors as of `find` and `VideoFiles.of`.
    """
    return find(files, *files.folders).of(rows, names, files.annotation_path(split))


def check_disjoint(
    files: Files, path: PathLike, test: Collection[str], train: Collection[str]
) -> None:
    """Refuses a test file that shares videos, or questions, with the training file.

    Then it is the file of another split.

    Raises:
        AnnotationError: it does.
    """
    if shared := set(test) & set(train):
        got = f"{len(shared)} of {len(set(test))} from the training split ({min(shared)})"
        raise files.wrong(path, got, "none")
