"""What happens between updates: `config.hooks`."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from flamingo_jax.core import ranges
from flamingo_jax.core.config import FieldError

LOGGERS = ("jsonl", "tensorboard", "wandb", "clearml")


@dataclasses.dataclass(frozen=True)
class HooksConfig:
    """What happens between updates; counts are in updates, 0 is never.

    Attributes:
      log_every: updates between two reports; numbers leave the devices only then.
      save_every: updates between two checkpoints; the last state is always saved. A multiple of
          log_every, so that a resumed run reports the same means.
      keep: number of checkpoints to keep, the newest ones.
      on_damage: what a run does that finds its newest checkpoint damaged: "previous" goes on from
          the one before, "fail" stops.
      on_nonfinite: what happens to an update with a loss or gradient that is not finite. "stop"
          ends the run. "skip" leaves weights and moments as they are, counts it, and names its
          records. One may change it when a run goes on. "skip" adds 0.1 to 0.3 % of FLOPs and 0.5 %
          of bytes to the compiled updates of configs/tiny.py (python -m
          tests.benchmarks.skip_nonfinite, 29 November 2026, CPU).
      max_nonfinite_in_a_row: so many such updates in a row end a run that skips them.
      loggers: where reports go besides metrics.jsonl, which is always written: "tensorboard",
          "wandb", "clearml", or MODULE:FUNCTION (`training.loggers.chosen`).
      tensorboard: False leaves "tensorboard" out of loggers.
      progress: True to show progress: a bar in a terminal, lines in a log file.
      stuck_seconds: a run is ended if an update, or reading its batch, takes so long and more than
          20 times the usual time. Compiling, saving and evaluating may take a multiple of it
          (core/phases.py). 0 never ends it.
      profile: (first, last): traces these updates, numbered from 1, into WORKDIR/profile, for XProf
          and TensorBoard; () never does. The first updates of a start compile, and are not like the
          others.
    """

    log_every: int = 50
    save_every: int = 1_000
    keep: int = 3
    on_damage: Literal["previous", "fail"] = "previous"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_nonfinite_in_a_row: int = 10
    loggers: tuple[str, ...] = ("jsonl", "tensorboard")
    tensorboard: bool = True
    progress: bool = True
    stuck_seconds: float = 120.0
    profile: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ranges.check(
            self, ranges.whole(1), "log_every", "keep", "max_nonfinite_in_a_row", "profile"
        )
        ranges.check(self, ranges.whole(0), "save_every")
        ranges.check(self, ranges.NOT_NEGATIVE, "stuck_seconds")
        if self.save_every % self.log_every:
            raise FieldError(
                f"save_every is {self.save_every}; expected a multiple of log_every, which is "
                f"{self.log_every}, so that a resumed run reports the same means."
            )
        for name in self.loggers:
            if name not in LOGGERS and not re.fullmatch(r"[^:]+:[^:]+", name):
                raise FieldError(
                    f"loggers has {name!r}; expected {', '.join(LOGGERS)}, or MODULE:FUNCTION for "
                    "a logger of your own."
                )
        if len(set(self.loggers)) < len(self.loggers):
            raise FieldError(f"loggers is {self.loggers}; expected each name once.")
        if self.profile and (len(self.profile) != 2 or self.profile[0] > self.profile[1]):
            raise FieldError(
                f"profile is {self.profile}; expected (first, last), two numbers of updates with "
                "first <= last, or () for no trace."
            )
