"""What orbax notes of each step, in STEP/_CHECKPOINT_METADATA: times, classes, and what we add.

orbax changes the file until the step appears, so the manifest does not contain it. It reads that of
all steps when a run starts, and fails if it is damaged, although nothing in it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flamingo_jax.checkpoint import damaged, manifest
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.version import __version__

OURS = {"flamingo_jax": __version__, "manifest": manifest.NAME}
"""Says that a step has a manifest, unlike those of old versions."""

_FILE = "_CHECKPOINT_METADATA"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "item_handlers": (dict, str),
    "metrics": dict,
    "performance_metrics": dict,
    "init_timestamp_nsecs": int,
    "commit_timestamp_nsecs": int,
    "custom_metadata": dict,
}


def say_manifest(step: Path) -> bool:
    """Returns whether a step must have a manifest; True if its notes are missing or damaged."""
    notes = _read(step / _FILE)
    return notes is None or "manifest" in (notes.get("custom_metadata") or {})


def mend(step: Path, workdir: PathLike, report: Callable[[str], None]) -> None:
    """Makes notes that are missing or damaged again; damaged ones go to WORKDIR/damaged."""
    file = step / _FILE
    if _read(file) is not None:
        return
    if file.exists():
        kept = damaged.set_aside(file, workdir)
        report(f"{file} is damaged. It is moved to {kept}, and is made again.")
    paths.write_json(file, {"custom_metadata": OURS})


def _read(file: Path) -> dict[str, Any] | None:
    """Returns the notes; None if they are missing or damaged."""
    try:
        notes = paths.read_json(file)
        return notes if all(_is_valid(*each) for each in notes.items()) else None
    except (paths.PathError, AttributeError):
        return None


def _is_valid(name: str, value: Any) -> bool:
    return value is None or isinstance(value, _TYPES.get(name, object))
