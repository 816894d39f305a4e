"""What a benchmark is to the evaluator.

A source of few-shot episodes (paper, Appendix A.2 and Figure 8).

    Task.episodes(shots, n, seed) -> [Episode]      one episode = one query with its support examples already in front of it

        parts       (image, "Output: A cat.<EOC>", image, "Output:")      the prompt; images stand where their `<image>` tag goes
        candidates  ("A cat.", "A dog.", ...)                             close-ended: ranked by log-likelihood
        answer      "A dog."                                              what the metrics compare with

    ComparisonTask.compare(model, n, seed) -> Comparison        zero-shot classification and retrieval with a contrastive model: it has no prompts

`evaluation.registry` makes tasks by name: a `TaskFactory` receives the directories of `config.data`
by name ({"world": "/data/world"}) and the settings of the few-shot protocol, and returns the task.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from flamingo_jax.core.notation import Float
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.inference.prompt import Visual


class TaskError(ValueError):
    """A task that is unknown, or cannot be done as asked."""


class UnknownTaskError(TaskError):
    """A task name that is not registered."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        suggestion = (
            f"did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
        )
        super().__init__(
            f"unknown task {name!r}: {suggestion}known tasks: {', '.join(known) or 'none'}."
        )


Split = Literal["test", "validation"]
Selection = Literal["random", "rices"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How queries and support examples are chosen.

    The same for all benchmarks (paper, A.2 and B.1.4).

    Attributes:
      split: "test": the queries of the paper's tables; "validation": queries from the training
          split, which no support set shares.
      selection: of support examples: "random", or "rices": those whose images are most like the
          query's.
      ensemble: orders of the support examples over which the scores of candidates are averaged; 1:
          no ensembling.
      num_support: size of the support set, where items have no classes.
      num_support_per_class: of each class in the support set, where they have.
      templates: file of sentences around the name of a class, for zero-shot classification; None:
          see `evaluation.benchmarks.class_templates`.
    """

    split: Split = "test"
    selection: Selection = "random"
    ensemble: int = 1
    num_support: int = 2048
    num_support_per_class: int = 32
    templates: str | None = None

    def __post_init__(self) -> None:
        for name in ("ensemble", "num_support", "num_support_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")

    def only_random(self, task: str) -> None:
        """For a task that draws its support examples itself.

        Raises:
          TaskError: it is asked for a choice that it does not have.
        """
        if self.split != "test" or self.selection != "random" or self.ensemble != 1:
            raise TaskError(
                f"the task {task!r} draws its own support examples for its test pictures: got "
                f"split={self.split}, selection={self.selection}, ensemble={self.ensemble}; "
                "expected test, random, 1. Leave it out of this run."
            )

    def only_test(self, task: str) -> None:
        """For a task without support examples, whose queries are those of the paper's tables.

        Raises:
          TaskError: it is asked for another split, or for a choice of support examples.
        """
        if self.split != "test" or self.selection != "random" or self.ensemble != 1:
            raise TaskError(
                f"the task {task!r} compares embeddings and has no support examples: got "
                f"split={self.split}, selection={self.selection}, ensemble={self.ensemble}; "
                "expected test, random, 1. Leave it out of this run."
            )


@runtime_checkable
class Task(Protocol):
    """A benchmark.

    Implementations are small frozen dataclasses, one file per benchmark in `evaluation/benchmarks`.
    """

    @property
    def name(self) -> str:
        """The name in results.json and on the command line."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names from `evaluation.metrics.METRICS`, such as ("exact_match", "ranking")."""
        ...

    @property
    def chance(self) -> float | None:
        """What guessing gives, drawn as a line in the report; None if that is not defined."""
        ...

    @property
    def settings(self) -> Settings:
        """How queries and support examples are chosen; goes into results.json."""
        ...

    def accepts(self, shots: int) -> bool:
        """Returns True if the task is defined at this number of support examples."""
        ...

    def submission_questions(self) -> Sequence[int | str]:
        """Returns the questions that the server which knows the right answers expects answers to, beyond the queries."""
        ...

    def episodes(self, shots: int, n: int, seed: int) -> Sequence[Episode]:
        """The first `n` episodes at `shots` support examples (n = 0: all).

        A pure function of its arguments; queries do not depend on `shots`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a contrastive model was measured to do.

    Attributes:
      values: by metric, 0..1.
      n: images or videos that were asked about.
      templates: sentences per class; 1 in retrieval.
      predictions: a JSON object for each query, for inspection.
    """

    values: Mapping[str, float]
    n: int
    templates: int = 1
    predictions: Sequence[Mapping[str, Any]] = ()


@runtime_checkable
class Encoders(Protocol):
    """What these tasks need of a model; `inference.dual_encoder.DualEncoder` is one."""

    def images(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n J"]:
        """Embeddings of images and videos, of length 1."""
        ...

    def texts(self, strings: Sequence[str]) -> Float[np.ndarray, "n J"]:
        """Embeddings of texts, of length 1."""
        ...


@runtime_checkable
class ComparisonTask(Protocol):
    """What is asked of a contrastive model.

    Embeddings of images are compared with those of texts.
    """

    @property
    def name(self) -> str:
        """The name in results.json and on the command line."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The keys of `Comparison.values`, the one that papers report first."""
        ...

    def compare(self, model: Encoders, n: int, seed: int) -> Comparison:
        """Compares `n` images (0: all) that `seed` chooses.

        Raises TaskError if there are not as many.
        """
        ...


TaskFactory: TypeAlias = Callable[[Mapping[str, str], Settings], "Task | ComparisonTask"]


def parted(tasks: Sequence[Task | ComparisonTask]) -> tuple[list[Task], list[ComparisonTask]]:
    """Tasks that prompt a model, and those that compare its embeddings."""
    prompted = [each for each in tasks if isinstance(each, Task)]
    return prompted, [each for each in tasks if isinstance(each, ComparisonTask)]


def directory(data: Mapping[str, str], benchmark: str, task: str) -> str:
    """The directory of `benchmark` in `data`, or an error that says how to give it.

    Raises:
      TaskError: `data` has no (or an empty) entry for the benchmark.
    """
    if not (path := data.get(benchmark)):
        raise TaskError(
            f"the task {task!r} needs the directory of {benchmark!r}, got none: pass "
            f"--config.data.{benchmark}=DIRECTORY."
        )
    return path
