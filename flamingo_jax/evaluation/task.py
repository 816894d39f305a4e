"""What a task is to the evaluator: a source of few-shot episodes (paper, A.2 and Figure 8).

    Task.episodes(shots) -> [Episode]    one query each, after its support examples

A contrastive model has no prompts; its tasks are `evaluation.comparison.ComparisonTask`.

`evaluation.registry` makes tasks by name: a `TaskFactory` gets the directories of `config.data` by
name ({"world": "/data/world"}) and the protocol of the evaluation, and returns the task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, runtime_checkable
from typing import Protocol as Interface

from flamingo_jax.evaluation.comparison import ComparisonTask
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.evaluation.protocol import Protocol


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


class MissingDirectoryError(TaskError):
    """The config names no directory for a benchmark.

    Args:
        task: which needs it.
        benchmark: whose data are looked for.
        data: the field of the config that has the directories.
    """

    def __init__(self, task: str, benchmark: str, data: str = "config.data") -> None:
        super().__init__(
            f"the task {task!r} needs the directory of {benchmark!r}, got none: pass "
            f"--{data}.{benchmark}=DIRECTORY."
        )
        self.task, self.benchmark = task, benchmark


@runtime_checkable
class Task(Interface):
    """A task that prompts the model: a benchmark under the few-shot protocol, or one like it.

    Implementations are small frozen dataclasses.
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
        """What guessing gives, a line in the report's curves; None if that is not defined."""
        ...

    @property
    def protocol(self) -> Protocol:
        """How queries and support examples are chosen; results.json has it."""
        ...

    def accepts(self, shots: int) -> bool:
        """Returns True if the task is defined at this number of support examples."""
        ...

    def submission_questions(self) -> Sequence[int | str]:
        """Returns the questions that the benchmark's server expects answers to.

        () if it expects those that were asked, or if there is no server.
        """
        ...

    def episodes(self, shots: int) -> Sequence[Episode]:
        """Returns the first `protocol.n` episodes at `shots` support examples (n = 0: all).

        A pure function of the task and `shots`; queries do not depend on `shots`.
        """
        ...


@runtime_checkable
class HasSetting(Interface):
    """A task that knows more about its queries and support examples than the protocol says."""

    def setting(self, shots: int) -> Mapping[str, Any]:
        """Returns the fields of a `Row` about queries and support examples at `shots`."""
        ...


TaskFactory: TypeAlias = Callable[[Mapping[str, str], Protocol], "Task | ComparisonTask"]


def split_by_kind(
    tasks: Sequence[Task | ComparisonTask],
) -> tuple[list[Task], list[ComparisonTask]]:
    """Returns the tasks that prompt a model, and those that compare its embeddings."""
    prompted = [each for each in tasks if isinstance(each, Task)]
    return prompted, [each for each in tasks if isinstance(each, ComparisonTask)]


def directory(data: Mapping[str, str], benchmark: str, task: str) -> str:
    """Returns the directory of `benchmark` in `data`.

    Raises:
        MissingDirectoryError: `data` has no (or an empty) entry for the benchmark; the message says
            how to give one.
    """
    if not (path := data.get(benchmark)):
        raise MissingDirectoryError(task, benchmark)
    return path


def check_draws_its_own(task: str, protocol: Protocol) -> None:
    """Checks the protocol of a task that draws its support examples itself.

    Raises:
        TaskError: the protocol asks for a choice that the task does not have.
    """
    _check_default_choices(task, protocol, "draws its own support examples for its test pictures")


def check_has_no_supports(task: str, protocol: Protocol) -> None:
    """Checks the protocol of a task that has no support examples and only the paper's queries.

    Raises:
        TaskError: the protocol asks for another split, or for a choice of support examples.
    """
    _check_default_choices(task, protocol, "compares embeddings and has no support examples")


def _check_default_choices(task: str, protocol: Protocol, why: str) -> None:
    choices = (protocol.split, protocol.selection, protocol.ensemble)
    if choices != ("test", "random", 1):
        raise TaskError(
            f"the task {task!r} {why}: got split={choices[0]}, selection={choices[1]}, "
            f"ensemble={choices[2]}; expected test, random, 1. Leave it out of this run."
        )
