"""Weights & Biases and ClearML: each a thin `training.loggers.own_logger.Logger`.

A run that goes on continues in the same place there: WORKDIR/trackers.json has its ids. Reports
that are computed again after a crash lie on the earlier ones, because "step" is the axis of all
curves. Both packages work offline: WANDB_MODE=offline, CLEARML_OFFLINE_MODE=1.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import Any

from flamingo_jax.core import paths
from flamingo_jax.training.background import Numbers, curves
from flamingo_jax.training.loggers.own_logger import LoggedRun

_PROJECT = "flamingo_jax"
_IDS = "trackers.json"


class WandbLogger:
    """A run of Weights & Biases.

    Its own environment variables hold: WANDB_MODE, WANDB_PROJECT ("flamingo_jax" without it),
    WANDB_ENTITY, WANDB_API_KEY and so on.
    """

    def __init__(self, run: LoggedRun) -> None:
        """Begins the run, or goes on with it. Its files are in WORKDIR/wandb."""
        import wandb

        known = _read(run.workdir)
        name = str(known.get("wandb") or uuid.uuid4().hex)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=name,
            resume="allow",
            dir=str(run.workdir) if paths.is_local(run.workdir) else None,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        paths.write_json(run.workdir / _IDS, {**known, "wandb": name})
        self._run.define_metric("*", step_metric="step")
        where = self._run.dir if self._run.offline else self._run.url
        run.report(f"wandb: this run is at {where}.")

    def write(self, step: int, numbers: Numbers) -> None:
        """Logs a report."""
        self._run.log({**dict(curves(numbers)), "step": step})

    def close(self) -> None:
        """Waits until what was logged is stored."""
        self._run.finish()


class ClearmlLogger:
    """A task of ClearML, in the project "flamingo_jax"."""

    def __init__(self, run: LoggedRun) -> None:
        """Begins the task, or goes on with it. It records what is reported, and nothing else."""
        import clearml

        known = _read(run.workdir)
        # Threads report. Its default on Linux, a fork, may block for ever in a process of JAX, and
        # only its configuration file has a public switch for it.
        clearml.Task._report_subprocess_enabled = False
        offline = clearml.Task.is_offline()
        self._task: Any = clearml.Task.init(
            project_name=_PROJECT,
            task_name=run.name,
            reuse_last_task_id=False,
            # offline there is no task to be found: each start has one of its own
            continue_last_task=False if offline else known.get("clearml", False),
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_resource_monitoring=False,
            auto_connect_streams=False,
        )
        if not offline:
            paths.write_json(run.workdir / _IDS, {**known, "clearml": self._task.id})
        self._task.set_initial_iteration(0)  # steps count from the begin of the run
        self._task.connect_configuration(dict(run.config), name="config")
        self._logger = self._task.get_logger()
        where = self._task.get_offline_mode_folder() if offline else None
        run.report(f"clearml: this run is at {where or self._task.get_output_log_web_page()}.")

    def write(self, step: int, numbers: Numbers) -> None:
        """Reports each number; curves of one list share a plot."""
        for name, value in curves(numbers):
            title, _, series = name.rpartition("/")
            self._logger.report_scalar(title or name, series, value, iteration=step)

    def close(self) -> None:
        """Waits until what was reported is stored."""
        self._task.close()


def _read(workdir: paths.Path) -> dict[str, Any]:
    """Returns {service: id}; {} where the file is missing or damaged: a new one begins there."""
    with contextlib.suppress(OSError, ValueError):
        found = paths.parse_json(paths.regular(workdir / _IDS).read_bytes().decode())
        return found if isinstance(found, dict) else {}
    return {}
