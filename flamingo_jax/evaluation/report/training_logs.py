"""Finds and reads the logs of a checkpoint's runs: its own, and those of its frozen towers."""

from __future__ import annotations

from typing import Any

from absl import logging

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.training import logs

LOG, CONFIG = "metrics.jsonl", "config.json"


def training_logs(checkpoint: PathLike) -> dict[str, Path]:
    """Finds the metrics.jsonl of each stage, towers first: {"contrastive": ..., "flamingo": ...}.

    Logs that are not found are left out: a published export is not in the directory of a run.

    Args:
        checkpoint: an export, WORKDIR or WORKDIR/checkpoints/STEP.
    """
    workdir = workdir_of(checkpoint)
    if workdir is None or not (workdir / CONFIG).exists():
        return {}
    try:
        config = paths.read_json(workdir / CONFIG)
        stage, towers = config["stage"], config.get("frozen") or {}
        places = [towers[name]["path"] for name in sorted(towers, reverse=True)]  # vision, lm
    except (paths.PathError, AttributeError, KeyError, TypeError):
        # The answers are there by now, and a report without loss curves is better than none.
        logging.warning("%s is damaged: the report shows no losses of it.", workdir / CONFIG)
        return {}
    found: dict[str, Path] = {}
    for place in places:
        found |= training_logs(place)
    return {**found, stage: workdir / LOG}


def workdir_of(checkpoint: PathLike) -> Path | None:
    """Returns the directory of the run that made a checkpoint: the one with its metrics.jsonl.

    None if it is not there, as for a published export.

    Args:
        checkpoint: an export, WORKDIR or WORKDIR/checkpoints/STEP.
    """
    return next((place for place in _upwards(Path(checkpoint)) if (place / LOG).exists()), None)


def read_log(path: PathLike) -> list[dict[str, Any]]:
    """Reads the reports of a metrics.jsonl, one per step, in order.

    Drops damaged lines, and one that was cut off when the run was killed.

    Raises:
        PathError: the file does not exist.
    """
    file = Path(path)
    if not file.exists():
        raise paths.PathError(f"There is no log {file}. Give the {LOG} of a run.")
    merged: dict[int, dict[str, Any]] = {}
    for numbers in logs.read(file):
        # after a resume the later report of a step counts
        merged.setdefault(numbers["step"], {}).update(numbers)
    return [merged[step] for step in sorted(merged)]


def _upwards(path: Path) -> list[Path]:
    return [path, path.parent, path.parent.parent]
