"""What a benchmark of the paper is.

A declaration, and a function from its official files to items (paper, Table 6 and B.1.4).

    VATEX = Benchmark(name="vatex", title="VATEX", metrics=(CIDER,), files={"train": ..., "test": ...},
                      download="...", layout="...", items=_items, published=..., ...)

    VATEX.at("/data/vatex").train() -> [Item]      supports, and the queries of the paper's validation
                           .test()  -> [Item]      the queries of the paper's Table 1

One file holds one benchmark, and `evaluation/registry.py` lists them. How supports are chosen, how
many, and in what order is the same for all (`evaluation/few_shot.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks.annotations import OWN_SPLITS, Files, FileSplit
from flamingo_jax.evaluation.benchmarks.contrastive_task import ContrastiveTask
from flamingo_jax.evaluation.metrics import Metric
from flamingo_jax.inference.prompt import Visual

SHOTS = (0, 4, 8, 16, 32)  # of Table 1
Line: TypeAlias = "Sequence[float | None]"  # values at SHOTS


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One annotated example, to be a support example or a query.

    Attributes:
      id: names it; unique within the benchmark.
      visual: its image or video, mostly a path that is read when the prompt is; None: the item is
          text alone.
      prefix: the text between the `<image>` tag and the answer, such as "Output:" or "Question:
          What is it? Answer:".
      answer: the text that follows in a support example, without its leading space, such as "A
          cat."; "" if it is not known (hidden test answers).
      references: all right answers, as the annotations have them, for the metrics.
      candidates: the possible answers of a close-ended benchmark, in the form of `answer`.
      label: class of the item, where supports are drawn per class; "" elsewhere.
      extra: what else the metric or the submission needs; JSON values.
    """

    id: str
    visual: Visual | None
    prefix: str
    answer: str
    references: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    label: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Series:
    """The published results of one model on one benchmark.

    Attributes:
        model: its name.
        values: by number of shots, in the unit of the publications: percent, and 100 times CIDEr,
            NDCG, WUPS and ROC AUC.
        selection: how support examples were chosen, "random" or "rices"; "" without any.
        detail: what else is special, such as "5 per class".
    """

    model: str
    values: Mapping[int, float]
    selection: str = "random"
    detail: str = ""

    @property
    def source(self) -> str:
        """A key of `report.published.SOURCES`."""
        family = self.model.partition("-")[0]
        return family if family in ("OpenFlamingo", "IDEFICS") else "Flamingo"

    @property
    def label(self) -> str:
        """The model and the setting, such as "Flamingo-3B, RICES, 5 per class"."""
        return ", ".join(
            filter(None, (self.model, "RICES" if self.selection == "rices" else "", self.detail))
        )


def at_shots(lines: Mapping[str, Line]) -> tuple[Series, ...]:
    """Returns the rows of a table over SHOTS.

    Args:
        lines: by model; None where nothing was reported.
    """
    return tuple(
        Series(
            model,
            {shots: value for shots, value in zip(SHOTS, line, strict=True) if value is not None},
        )
        for model, line in lines.items()
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """One of the paper's benchmarks, declared in one file of `evaluation/benchmarks`.

    Attributes:
        name: in results.json and on the command line, such as "coco".
        title: in tables, such as "COCO".
        metrics: the paper's first; each has its unit.
        visual: what an item shows.
        queries: what the paper evaluates on, such as "Karpathy test".
        items: files and "train" or "test" -> items. Test items are the queries of Table 1 (Table 6,
            last column but one).
        download: official site of the files, in a few words.
        layout: what the directory holds, a line per file, indented by two spaces per folder.
        files: annotation file of each split, the official place first.
        splits: the names that the official files give to each split.
        folders: the possible folders of the images or videos, the official one first.
        chance: what guessing gives, in the unit of the first metric; None if that is not defined.
        max_shots: the most support examples that are defined.
        beyond_max_shots: a sentence below tables that have more shots.
        validation_queries: of the paper's validation; where items have classes, the number is per
            class and the same for all benchmarks.
        data: the benchmark in whose directory this variant's files are stored; "": its own,
            `config.data.NAME`.
        submission_ids: files -> the questions that the server which knows the right answers expects
            answers to; None: those that were asked.
        published: what others report, small models first.
        table: number of the paper's table with its results.
        fine_tuned_sota: the state of the art of fine-tuned models by Table 1 (Table 7: ImageNet,
            Kinetics700); None: there was none.
        zero_few_shot_sota: the best of zero-shot and few-shot models before Flamingo, by Table 1 (Table
            7: zero-shot, contrastive).
        contrastive: its task for contrastive models; None: it has none.
        is_dev: True if the paper's design was chosen on it.
        is_youtube: True if the paper had only the videos that were public in April 2022.
        directory: where the files are; see `at`.
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
    is_youtube: bool = False
    directory: PathLike = ""

    @property
    def metric(self) -> Metric:
        """The metric that the paper reports."""
        return self.metrics[0]

    def at(self, directory: PathLike) -> Benchmark:
        """Returns the benchmark with its files in `directory`."""
        return dataclasses.replace(self, directory=directory)

    def train(self) -> Sequence[Item]:
        """Reads the training split.

        Supports are drawn from it, and the queries of the paper's validation.
        """
        return self.items(self._located, "train")

    def test(self) -> Sequence[Item]:
        """Reads the queries of the paper's Table 1."""
        return self.items(self._located, "test")

    def submission_questions(self) -> Sequence[int | str]:
        """Reads which questions the server expects answers to.

        () if it expects those that were asked.
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
