"""What a logger is, and what it knows of the run: for `chosen` and for a user's own.

def make(run: LoggedRun) -> Logger: ...       --config.hooks.loggers=my_logs:make
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from flamingo_jax.core import paths
from flamingo_jax.training.background import Numbers


@runtime_checkable
class Logger(Protocol):
    """What a user's own logger has. Its methods may raise any error: `write` is called again."""

    def write(self, step: int, numbers: Numbers) -> None:
        """Writes a report: float, or a list of floats with one entry per layer, by name."""

    def close(self) -> None:
        """Ends; nothing is written after it."""


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """What a logger knows of the run.

    Attributes:
      name: `config.name`, or the stage.
      workdir: of the run, a `core.paths.Path`.
      restored_step: updates done before this start; 0 in a new run.
      steps: updates of the run.
      config: all fields of the resolved config, as nested dicts.
      report: takes a line for people.
    """

    name: str
    workdir: paths.Path
    restored_step: int
    steps: int
    config: Mapping[str, Any]
    report: Callable[[str], None]
