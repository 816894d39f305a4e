"""What a benchmark is (paper, Table 6 and B.1.4).

A benchmark is one declaration: its names, metric, official files and published results, and a
function from the files to items.

    VATEX = Benchmark(name="vatex", title="VATEX", metrics=(CIDER,), files={...}, download="...",
                      layout="...", items=_items, published=..., ...)

    VATEX.at("/data/vatex").train() -> [Item]   support examples, queries of the paper's validation
                           .test()  -> [Item]   the queries of the paper's Table 1

Each file of this folder declares one benchmark, and `evaluation/registry.py` lists them. How many
support examples there are, and how they are chosen and ordered, is the same for all benchmarks
(`evaluation/few_shot.py`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, overload

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.benchmarks.annotations import OWN_SPLITS, Files, FileSplit
from flamingo_jax.evaluation.benchmarks.contrastive_task import ContrastiveTask
from flamingo_jax.evaluation.metrics import Metric
from flamingo_jax.evaluation.protocol import Split
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.visuals import Deferred, Image, Video, Visual

SHOTS = (0, 4, 8, 16, 32)  # of Table 1
ValuesAtShots: TypeAlias = "Sequence[float | None]"


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One annotated example: a support example or a query.

    Attributes:
        id: unique within the benchmark.
        visual: image or video, usually a path that is read together with the prompt; None if the
            item has only text.
        prefix: text between the `<image>` tag and the answer, such as "Output:" or "Question: What
            is it? Answer:".
        answer: text after the prefix in a support example, without the space before it, such as
            "A cat."; "" if it is not known (hidden test answers).
        references: all right answers as annotated, for the metrics.
        candidates: possible answers of a close-ended benchmark, in the form of `answer`.
        label: class of the item, where support examples are drawn per class; else "".
        turns: the prefix of a dialogue, with the right answers in it: prompt, answer, ..., prompt;
            () = the prefix has no answers.
        extra: other values that the metric or the submission needs; JSON values. "groups" has the
            names of the groups of queries that this one belongs to, such as ["out-domain"]: the
            results have the metric of each group too.
        source: name of the picture or video in the annotations, where several items may show it;
            "": the file that the item shows.
    """

    id: str
    visual: Visual | None
    prefix: str
    answer: str
    references: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    label: str = ""
    turns: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""

    @property
    def shown(self) -> str:
        """What the item shows: items with the same value show the same picture or video.

        A segment of a video counts as the video.
        """
        visual = self.visual
        if self.source:
            return self.source
        if visual is None:
            return self.id
        if isinstance(visual, Image | Video | Path):
            return os.path.normpath(visual if isinstance(visual, Path) else visual.path)
        return visual.name if isinstance(visual, Deferred) else identity(visual).hex()


class LazyItems(Sequence[Item]):
    """A sequence that stores no items, for training splits of a million images.

    Each access makes the item again.

    Args:
        length: number of items.
        make: index in 0..length-1 -> item; pure.
    """

    def __init__(self, length: int, make: Callable[[int], Item]):
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(self._length)[index]  # handles negative indices, raises IndexError
        if isinstance(places, int):
            return self._make(places)
        return [self._make(place) for place in places]

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, range(self._length))


@dataclasses.dataclass(frozen=True)
class Series:
    """The published results of one model on one benchmark.

    Attributes:
        model: name of the model.
        values: number of shots -> value in the unit of the publications: percent, and 100 times
            CIDEr, NDCG, WUPS and ROC AUC.
        selection: how support examples were chosen, "random" or "rices"; "" without support
            examples.
        detail: other settings, such as "5 per class".
    """

    model: str
    values: Mapping[int, float]
    selection: str = "random"
    detail: str = ""

    @property
    def source(self) -> str:
        """The publication: a key of `report.published.SOURCES`."""
        family = self.model.partition("-")[0]
        return family if family in ("OpenFlamingo", "IDEFICS") else "Flamingo"

    @property
    def label(self) -> str:
        """Model and setting, such as "Flamingo-3B, RICES, 5 per class"."""
        return ", ".join(
            filter(None, (self.model, "RICES" if self.selection == "rices" else "", self.detail))
        )


def at_shots(lines: Mapping[str, ValuesAtShots]) -> tuple[Series, ...]:
    """Returns the rows of a table with a column for each of SHOTS.

    Args:
        lines: model -> a value for each of SHOTS, None where nothing was reported.
    """
    found = []
    for model, line in lines.items():
        values = zip(SHOTS, line, strict=True)
        found.append(Series(model, {shots: value for shots, value in values if value is not None}))
    return tuple(found)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """A benchmark, of the paper or another one.

    Attributes:
        name: name in results.json and on the command line, such as "coco".
        title: name in tables, such as "COCO".
        metrics: the metric of the paper first; each has its unit.
        visual: what an item shows.
        queries: name of the split that the paper evaluates on, such as "Karpathy test".
        own_queries: name of the split that is evaluated here, where it is another; "": `queries`.
        items: (files, "train" or "test") -> items. The test items are the queries of Table 1 (Table
            6, last column but one).
        download: official site of the files, in a few words.
        layout: expected content of the directory: a line per file, indented by two spaces per
            folder.
        files: possible places of each split's annotation file, the official one first.
        splits: names of "train" and "test" in the official files.
        folders: possible folders of the images or videos, the official one first.
        chance: value of the first metric for guessed answers; None if it is not defined.
        max_shots: largest number of support examples.
        beyond_max_shots: note below tables that have more shots than `max_shots`.
        validation_queries: number of queries of the paper's validation. Where items have classes,
            `draws.VALIDATION_QUERIES_PER_CLASS` is used instead.
        data: name of the benchmark that has this variant's files in its directory; "": this one.
        submission_ids: files -> the questions that the evaluation server expects answers to; None:
            those that were asked.
        published: results of others, small models first.
        table: number of the paper's table that has the results.
        fine_tuned_sota: state of the art of fine-tuned models by Table 1 (ImageNet and Kinetics700:
            Table 7); None if the table has no value.
        zero_few_shot_sota: best zero-shot or few-shot model before Flamingo by Table 1 (Table 7:
            zero-shot, contrastive); None if the table has no value.
        contrastive: the benchmark's task for contrastive models; None if it has no such task.
        is_dev: True if the paper's design was chosen on this benchmark.
        is_of_paper: True if the paper evaluates on it.
        is_youtube: True if the paper had only the videos that were public in April 2022.
        is_whole: True if the metric judges several queries together, so that a part of them has no
            value.
        directory: directory of the files; see `at`.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    visual: Literal["image", "video"]
    queries: str
    items: Callable[[Files, FileSplit], Sequence[Item]]
    download: str
    layout: str
    files: Mapping[FileSplit, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    splits: Mapping[FileSplit, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: OWN_SPLITS
    )
    folders: tuple[str, ...] = ()
    chance: float | None = None
    max_shots: int = 32
    beyond_max_shots: str = ""
    validation_queries: int = 1024
    data: str = ""
    submission_ids: Callable[[Files], Sequence[int | str]] | None = None
    published: tuple[Series, ...] = ()
    table: Literal[1, 7] = 1
    fine_tuned_sota: float | None = None
    zero_few_shot_sota: float | None = None
    contrastive: ContrastiveTask | None = None
    is_dev: bool = False
    is_of_paper: bool = True
    is_youtube: bool = False
    is_whole: bool = False
    directory: PathLike = ""
    own_queries: str = ""

    def split(self, which: Split) -> str:
        """Returns the name of the split that the queries are from.

        Args:
            which: `Protocol.split`.
        """
        return (
            "validation, from train" if which == "validation" else self.own_queries or self.queries
        )

    @property
    def metric(self) -> Metric:
        """The metric that the paper reports."""
        return self.metrics[0]

    def at(self, directory: PathLike) -> Benchmark:
        """Returns the benchmark with its files in `directory`."""
        return dataclasses.replace(self, directory=directory)

    def train(self) -> Sequence[Item]:
        """Reads the training split, which has the support examples and the validation queries.

        Raises:
            AnnotationError: a file is missing, damaged or another one, or has an id twice.
        """
        return self._read("train", self._located)

    def train_and_left_out(self) -> tuple[Sequence[Item], Mapping[str, int]]:
        """Reads the training split, and the number of its items that are left out, by reason.

        Raises:
            AnnotationError: as of `train`.
        """
        files = self._located
        return self._read("train", files), files.left_out

    def test(self) -> Sequence[Item]:
        """Reads the queries of the paper's Table 1.

        Raises:
            AnnotationError: as of `train`.
        """
        return self._read("test", self._located)

    def _read(self, split: FileSplit, files: Files) -> Sequence[Item]:
        items = self.items(files, split)
        # Items that are made on request are checked by their benchmark, or as they are drawn.
        if isinstance(items, list):
            is_listed = split in files.annotations
            path = files.annotation_path(split) if is_listed else self.directory
            files.check_ids(path, (item.id for item in items))
        return items

    def submission_questions(self) -> Sequence[int | str]:
        """Reads the questions that the evaluation server expects answers to.

        Returns () if the server expects the questions that were asked.
        """
        return self.submission_ids(self._located) if self.submission_ids else ()

    @property
    def _located(self) -> Files:
        return Files(
            self.directory,
            self.data or self.name,
            self.download,
            self.layout,
            self.files,
            self.folders,
            self.splits,
        )
