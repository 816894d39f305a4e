"""The card of an export, DIR/model.json, and the check of the files that it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from flamingo_jax.checkpoint import damaged, manifest
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.manifest import DamageError
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.processes import from_first_process

CARD = "model.json"
MODEL_CARD = "MODEL_CARD.md"  # of an export, for people (flamingo_jax.cards)
_unchecked: set[str] = set()  # exports without a manifest, of which a line has said so


def read_card(path: PathLike, *, what: str = "checkpoint") -> tuple[Path, dict[str, Any]]:
    """Returns (directory, content of model.json) of an export.

    Args:
        path: the export, or the WORKDIR that contains it.
        what: what the export is used for, in messages.

    Raises:
        DamageError: if model.json is damaged.
        CheckpointError: if there is no export.
    """
    for directory in (Path(path), Path(path) / "export"):
        if (directory / CARD).exists():
            return directory, _card(directory, what)
    raise CheckpointError(
        f"There is no export at {path}: it has no model.json. Give the directory of a finished "
        "stage."
    )


def _card(directory: Path, what: str) -> dict[str, Any]:
    fields = {"kind", "config", "preprocessing", "content_hash", "step"}
    try:
        card = manifest.read_object(directory / CARD)
        if missing := sorted(fields - set(card)):
            raise DamageError(f"model.json lacks {', '.join(missing)}")
        required = "manifest" in card
        manifest.check(directory, required=required, only=lambda name: name == CARD, alone=True)
    except (DamageError, paths.PathError) as error:
        reason = str(error).removesuffix(".")
        raise DamageError(f"The {what} {directory} is damaged: {reason}.") from error
    return card


def is_of_model(name: str) -> bool:
    """Returns True for the files of an export that decide its weights; a tower needs no others."""
    return name == CARD or name.startswith("weights/")


def check_files(
    directory: PathLike,
    card: Mapping[str, Any],
    *,
    what: str = "export",
    only: Callable[[str], bool] = lambda name: True,
) -> manifest.Contents | None:
    """Compares the files of an export with its manifest; all processes call it together.

    Args:
        directory: the export.
        card: its model.json.
        what: what the export is used for, in messages.
        only: only(name) says whether a file is checked.

    Returns:
        How much was checked; None if the export is of an old version and has no manifest.

    Raises:
        DamageError: if a file is missing, cut off or changed.
        CheckpointError: if a file cannot be read for another reason, such as a permission.
    """
    try:
        checked = manifest.check(directory, required="manifest" in card, only=only)
    except DamageError as error:
        raise DamageError(
            f"The {what} {directory} is damaged: {error}. Copy it again, or make it again."
        ) from error
    if checked is None and jax.process_index() == 0 and str(directory) not in _unchecked:
        _unchecked.add(str(directory))  # one line is enough
        logging.warning(
            "The %s %s cannot be checked: it has no %s.", what, directory, manifest.NAME
        )
    return checked


def whole(directory: PathLike, *, report: Callable[[str], None]) -> dict[str, Any] | None:
    """Returns the card of a run's export, or None if it must be made; all processes call it.

    An export that is damaged or half written is moved to `damaged` next to it: it can be made
    again, so it is no reason to stop.

    Args:
        directory: WORKDIR/export.
        report: receives a line about a damaged one.
    """
    place = Path(directory)
    try:
        # a link to nothing is something
        is_there = place.parent.is_dir() and place in place.parent.iterdir()
        if not from_first_process("there" if is_there else ""):
            return None
        if not (place / CARD).exists():
            raise DamageError(f"The export {place} is damaged: model.json: missing.")
        card = _card(place, "export")
        check_files(place, card)
    except DamageError as error:
        kept = damaged.set_aside_by_first(place, place.parent)
        report(f"{error} It is moved to {kept}, and is made again.")
        return None
    return card
