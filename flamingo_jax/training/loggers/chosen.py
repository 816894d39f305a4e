"""The logs of a run by name: `config.hooks.loggers`.

    "jsonl"            WORKDIR/metrics.jsonl; always written, because a run that goes on reads it
    "tensorboard"      WORKDIR/tensorboard
    "wandb"            Weights & Biases     pip install 'flamingo_jax[wandb]'
    "clearml"          ClearML              pip install 'flamingo_jax[clearml]'
    "MODULE:FUNCTION"  your own: FUNCTION(LoggedRun) returns a Logger

A logger works in a thread of its own (`training.background`): it is made there, with the first
report. What fails is tried again. It is one warning and, at the end, one line with the number of
reports that were not written. It never ends the run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths
from flamingo_jax.core.command_line import named_function
from flamingo_jax.training.background import Numbers, Sink
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.loggers.own_logger import LoggedRun, Logger
from flamingo_jax.training.loggers.tensorboard import EventFiles

_FIELD = "--config.hooks.loggers"
_EXAMPLE = "my_logs:make"
_TRACKERS = {"wandb": "WandbLogger", "clearml": "ClearmlLogger"}  # of loggers.trackers


class LoggerSink:
    """A Logger, made when the first report is written: `background.Sink`."""

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        """Makes nothing yet: a service may take long to answer."""
        self.name = name
        self.num_unsafe = 0
        self._make, self._written = make, 0
        self._logger: Logger | None = None

    def write(self, step: int, numbers: Numbers) -> None:
        """Hands a report to the logger."""
        if self._logger is None:
            self._logger = self._make()
        self._logger.write(step, numbers)
        self._written += 1

    def sync(self, *, now: bool) -> None:
        """Does nothing: services store reports at a time of their own."""

    def close(self) -> None:
        """Ends the logger. If that fails, or does not end, no report counts as written."""
        if self._logger is not None:
            self.num_unsafe = self._written
            self._logger.close()
            self.num_unsafe = 0


def check(names: Sequence[str]) -> None:
    """Checks that every logger can be made; contacts no service.

    Args:
        names: `config.hooks.loggers`.

    Raises:
        ConfigError: a package is not installed, or MODULE:FUNCTION does not exist.
    """
    for name in names:
        if ":" in name:
            _own(name)
        # A folder "wandb", which wandb itself makes, counts as a package without an origin
        elif name in _TRACKERS and getattr(importlib.util.find_spec(name), "origin", None) is None:
            raise config_lib.ConfigError(
                f"{_FIELD} has {name!r}, and the package {name} is not installed: pip install "
                f"'flamingo_jax[{name}]', or leave {name!r} out."
            )


def sinks(
    config: TrainConfig, workdir: paths.Path, restored_step: int, report: Callable[[str], None]
) -> list[Sink]:
    """Returns the logs that `config.hooks` names, without metrics.jsonl.

    Args:
        config: the resolved config.
        workdir: of the run.
        restored_step: updates done before.
        report: takes a line for people.

    Raises:
        ConfigError: see `check`.
    """
    check(config.hooks.loggers)
    name, fields = config.name or config.stage, config_lib.to_dict(config)
    run = LoggedRun(name, workdir, restored_step, config.steps, fields, report)
    found: list[Sink] = []
    for logger in config.hooks.loggers:
        if logger == "tensorboard" and config.hooks.tensorboard:
            found.append(EventFiles(workdir / "tensorboard", restored_step))
        elif logger not in ("jsonl", "tensorboard"):
            found.append(LoggerSink(logger, _maker(logger, run)))
    return found


def _maker(name: str, run: LoggedRun) -> Callable[[], Logger]:
    def make() -> Logger:
        if ":" in name:
            return _own(name)(run)
        from flamingo_jax.training.loggers import trackers

        return getattr(trackers, _TRACKERS[name])(run)

    return make


def _own(name: str) -> Callable[[LoggedRun], Logger]:
    try:
        return named_function(_FIELD, name, _EXAMPLE)
    except ValueError as error:
        raise config_lib.ConfigError(str(error)) from error
