"""Checks checkpoints that lie on a disk, without a run: all files of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from flamingo_jax.checkpoint import manifest, store
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import CARD
from flamingo_jax.checkpoint.manifest import DamageError
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike


class Verdict(NamedTuple):
    """What was found of one checkpoint.

    Attributes:
        state: "no manifest" if it is of an old version, which stored no hashes.
        path: the step or the export.
        detail: how much was read, or the first file that is damaged and what is wrong with it.
    """

    state: Literal["ok", "damaged", "no manifest"]
    path: Path
    detail: str


def verify(path: PathLike) -> Iterator[Verdict]:
    """Checks a step; an export; or all steps and the export of a WORKDIR, and its frozen towers.

    Raises:
        CheckpointError: if there is nothing to check, or a file cannot be read.
    """
    place = paths.absolute(path)
    there = store.steps(place)
    of_run = {str(step): step for step in store.steps(place.parent.parent)}
    if any((place / name).exists() for name in (CARD, "weights")):
        yield _export(place)
        return
    if not there and place.parent.name == "checkpoints" and place.name in of_run:
        yield _step(place.parent.parent, of_run[place.name])
        return
    if not there and not (place / "export").exists():
        raise CheckpointError(
            f"There is no checkpoint at {place}. Give an export, a WORKDIR with checkpoints/ or "
            "export/, or WORKDIR/checkpoints/STEP."
        )
    for step in there:
        verdict = _step(place, step)
        if verdict.path.exists():  # a run that goes on has not deleted it meanwhile
            yield verdict
    if (place / "export").exists():
        yield _export(place / "export")
    yield from (_export(tower) for tower in _towers(place, there))


def _step(workdir: Path, step: int) -> Verdict:
    directory = store.step_directory(workdir, step)
    return _verdict(directory, lambda: store.check_step(workdir, step))


def _export(directory: Path) -> Verdict:
    def check() -> manifest.Contents | None:
        try:
            card = manifest.read_object(directory / CARD)
        except paths.PathError as error:
            manifest.check(directory, required=False)  # it may know more
            raise DamageError(f"{CARD}: {error}".removesuffix(".")) from error
        return manifest.check(directory, required="manifest" in card)

    return _verdict(directory, check)


def _verdict(directory: Path, check: Callable[[], manifest.Contents | None]) -> Verdict:
    try:
        checked = check()
    except DamageError as error:
        return Verdict("damaged", directory, str(error))
    if checked is None:
        return Verdict("no manifest", directory, "its files cannot be checked")
    return Verdict("ok", directory, f"{checked.files:,} files, {checked.bytes:,} bytes")


def _towers(workdir: Path, there: list[int]) -> list[Path]:
    """Returns the exports of the frozen towers that the newest readable step names."""
    for step in reversed(there):
        try:
            frozen: dict[str, Any] = store.read_item(workdir, step, "config").get("frozen") or {}
            return sorted({Path(record["path"]) for record in frozen.values()})
        except (CheckpointError, AttributeError, KeyError, TypeError):
            continue
    return []
