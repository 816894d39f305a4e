"""Saves and restores the checkpoints of a run.

    WORKDIR/config.json                 the resolved config
    WORKDIR/checkpoints/STEP/state/     trainable weights and optimizer state, as named arrays
                                        (orbax, OCDBT)
                            /data/      {dataset: position}, JSON
                            /config/    the resolved config, JSON
                            /unreported/    if the run ended between two reports: what the next
                                        report needs, JSON
                            /manifest.json    size and hash of each file
    WORKDIR/damaged/STEP/               a checkpoint that was found damaged

Checkpoints are saved in the background. A run finds its newest checkpoint again, checks its files,
and refuses one of another config. If the newest is damaged, the one before is taken.

The training loop saves one tree, {"trainable": {module: {name: array}}, "opt_state": ..., "step":
int32 scalar}. Frozen towers are not in it: the entry "frozen" of the config names the export of
each (see `partial.frozen_record`). Every weight of the model is either trainable or below the
target of one of these entries.

A step appears by a rename (on gs://, by a commit file that is written last), so an incomplete one
does not count. In a cluster all processes make the same calls in the same order, and orbax
synchronises them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import orbax.checkpoint as ocp

from flamingo_jax.checkpoint import (
    arrays,
    damaged,
    manifest,
    orbax_notes,
    orbax_waits,
    sealed_save,
)
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.manifest import DamageError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.processes import from_first_process

# A run may continue with other values in these fields. They decide how long and where it runs, not
# what it computes. A tower may have moved, because its hash (frozen.TOWER.hash) must be the same.
MAY_DIFFER = (
    r"name",
    r"steps",
    r"until(\..*)?",
    r"hooks(\..*)?",
    r"mesh(\..*)?",
    r"layers",
    r"towers(\.(lm|vision))?",
    r"frozen\.\w+\.path",
)


T = TypeVar("T")
OnDamage = Literal["previous", "fail"]

_ITEMS = ("state", "data", "config")


class Store:
    """The checkpoints of one run, in WORKDIR/checkpoints. Close it, or use it in a `with`."""

    def __init__(
        self,
        workdir: PathLike,
        config: Mapping[str, Any],
        *,
        keep: int = 3,
        may_differ: tuple[str, ...] = MAY_DIFFER,
        completed: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda config: config,
        advice: Callable[[list[str]], str] = lambda fields: "",
        on_damage: OnDamage = "previous",
        report: Callable[[str], None] = lambda line: None,
    ):
        """Opens the run, and refuses a workdir with another one.

        The newest checkpoint is checked. If it is damaged it is moved to WORKDIR/damaged, and the
        one before is the newest.

        Args:
            workdir: created if it does not exist.
            config: the resolved config from `core.config.to_dict`, with "frozen" for the towers.
            keep: how many of the newest checkpoints are kept; at least 1.
            may_differ: regular expressions of dotted fields in which a checkpoint's config may
                differ from `config`.
            completed: adds to a checkpoint's config the fields that are newer than the checkpoint,
                with their defaults.
            advice: returns what else to do about fields that differ, as the end of a message.
            on_damage: "fail" to raise an error if the newest checkpoint is damaged.
            report: receives a line about each damaged checkpoint, and about one that cannot be
                checked.

        Raises:
            PathError: if the workdir cannot be written.
            CheckpointError: if the newest checkpoint was made with another config; names the
                fields. Or if all checkpoints are damaged.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1 checkpoint to be kept.")
        self._workdir, self._config = paths.absolute(workdir), dict(config)
        self._may_differ, self._completed, self._advice = may_differ, completed, advice
        self._on_damage, self._report = on_damage, report
        self._directory = paths.make_directory(self._workdir / "checkpoints")
        self._unchecked: set[int] = set()
        self._saving = 0
        self._newest()
        if ocp.multihost.process_index() == 0:
            if self._config_file.is_dir():
                damaged.set_aside(self._config_file, self._workdir)
            damaged.set_links_aside(self._directory, ocp.path.step.TMP_DIR_SUFFIX, report)
            for step in steps(self._workdir):
                orbax_notes.mend(step_directory(self._workdir, step), self._workdir, report)
        self.add_to_config({})
        from_first_process("")  # wait for what it mended
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add("state", ocp.args.PyTreeSave, sealed_save.HashingHandler())
        with contextlib.ExitStack() as stack:
            self._plain = stack.enter_context(paths.plain_name(self._directory))
            self._manager = ocp.CheckpointManager(
                self._plain,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                    cleanup_tmp_directories=True,  # of a run that was killed
                    async_options=orbax_waits.options(self._seal),
                ),
                handler_registry=handlers,
            )
            self._close = stack.pop_all()

    def add_to_config(self, fields: Mapping[str, Any]) -> None:
        """Adds fields to the config that config.json and all checkpoints from now on store."""
        self._config |= fields
        if ocp.multihost.process_index() == 0:
            paths.write_json(self._config_file, self._config)

    @property
    def _config_file(self) -> Path:
        return self._workdir / "config.json"

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return max(steps(self._workdir), default=None)

    def save(
        self,
        step: int,
        state: Any,
        positions: Mapping[str, int],
        *,
        unreported: Sequence[Any] = (),
    ) -> bool:
        """Starts to save a step, and returns when the arrays are copied and may be donated.

        First waits for the previous save to end.

        Args:
            step: number of updates.
            state: tree of (sharded) arrays, without None and without frozen towers.
            positions: how many batches of each dataset were used.
            unreported: JSON values that `unreported` returns in the run that goes on.

        Returns:
            False if this step is already saved; then nothing is written.

        Raises:
            CheckpointError: if this save cannot start, or the previous one failed.
        """
        items = {
            "state": ocp.args.PyTreeSave(arrays.named(state)),
            "data": ocp.args.JsonSave(dict(positions)),
            "config": ocp.args.JsonSave(self._config),
        }
        if unreported:
            items["unreported"] = ocp.args.JsonSave({"rows": list(unreported)})
        self.wait()
        if step in self._manager.all_steps():
            return False
        self._saving = step
        with self._saves():
            return self._manager.save(
                step, args=ocp.args.Composite(**items), custom_metadata=orbax_notes.OURS
            )

    def restore(self, step: int | None, like: Any) -> tuple[Any, dict[str, int]]:
        """Returns (state, positions) of a step, equal to the bit, with the shardings of `like`.

        Args:
            step: None for the newest.
            like: the state's tree of jax.ShapeDtypeStruct with shardings. The mesh may be another
                one than that of the save.

        Raises:
            CheckpointError: if there is no such step, it is damaged, or it has another config or
                another structure.
        """
        self.wait()
        if step is not None:
            self._refuse_another_config(step)
            try:
                self._check(step)
            except DamageError as error:
                raise CheckpointError(
                    f"Checkpoint {step_directory(self._workdir, step)} is damaged: {error}."
                ) from error
        elif (step := self._newest()) is None:
            raise CheckpointError(
                f"{self._directory} holds no complete checkpoint. Start the run from step 0."
            )
        else:
            self._manager.reload()  # without those that were moved
        wanted = arrays.named(like)
        directory = step_directory(self._workdir, step) / "state"
        arrays.compare(arrays.describe(directory), wanted, where=f"Checkpoint {directory}")
        found = arrays.read(directory, wanted)
        state = jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])
        return state, read_item(self._workdir, step, "data")

    def unreported(self, step: int, read: Callable[[Any], T]) -> T:
        """Returns read(what was saved with a step as `unreported`); of [] for most steps.

        Raises:
            CheckpointError: if it is damaged, or `read` raises a ValueError.
        """
        directory = step_directory(self._workdir, step)
        if not (directory / "unreported").exists():
            return read([])
        try:
            return read(read_item(self._workdir, step, "unreported").get("rows"))
        except ValueError as error:
            raise CheckpointError(
                f"Checkpoint {directory} is damaged: unreported/metadata: {error}. Move "
                f"{directory} out of WORKDIR/checkpoints to go on from the step before."
            ) from error

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
            CheckpointError: if it failed.
        """
        with self._saves():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save, and ends the background threads."""
        try:
            self.wait()
        finally:
            # after an error, its threads may have another one to raise
            with self._close, self._saves():
                self._manager.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _newest(self) -> int | None:
        """Returns the newest step that is not damaged, after the damaged ones were moved away.

        All processes take the steps that the first one sees, and the same of them.

        Raises:
            CheckpointError: if all are damaged, if one is and the user wants to stop then, or if
                the newest is of another config.
        """
        there = json.loads(from_first_process(json.dumps(steps(self._workdir), allow_nan=False)))
        problems: dict[int, str] = {}
        newest = None
        for step in reversed(there):
            try:
                self._check(step)
            except DamageError as error:
                problems[step] = str(error)
            else:
                newest = step
                break
        if problems and newest is None:
            each = "; ".join(f"{step}: {problem}" for step, problem in problems.items())
            raise CheckpointError(
                f"All checkpoints in {self._directory} are damaged, and the run does not start "
                f"again from step 0 by itself ({each}). Put a copy of one there; or move the "
                "directory away to start from step 0."
            )
        if newest is None:
            return None
        if problems and self._on_damage == "fail":
            step, problem = next(iter(problems.items()))
            raise CheckpointError(
                f"Checkpoint {step_directory(self._workdir, step)} is damaged: {problem}. Put a "
                "copy of it there, or go on from step "
                f"{newest} with --config.hooks.on_damage=previous."
            )
        self._refuse_another_config(newest)
        for step, problem in problems.items():
            place = step_directory(self._workdir, step)
            kept = damaged.set_aside_by_first(place, self._workdir)
            self._report(
                f"Checkpoint {place} is damaged: {problem}. It is moved to {kept}, and the run "
                f"goes on from {step_directory(self._workdir, newest)}."
            )
        return newest

    def _check(self, step: int) -> None:
        """Checks the files of a step.

        Raises:
            DamageError: if a file is damaged.
        """
        if check_step(self._workdir, step) is None and step not in self._unchecked:
            self._unchecked.add(step)  # one line is enough
            self._report(
                f"Checkpoint {step_directory(self._workdir, step)} cannot be checked: it has no "
                f"{manifest.NAME}."
            )

    def _seal(self) -> None:
        """Writes the manifest of the step that is being saved, in the first process."""
        name = str(self._saving)
        temporary = self._plain / f"{name}{ocp.path.step.TMP_DIR_SUFFIX}"
        sealed_save.seal(temporary if temporary.exists() else self._plain / name)

    @contextlib.contextmanager
    def _saves(self) -> Iterator[None]:
        """Reports what orbax raises, now or for a save before.

        Raises:
            CheckpointError: if it raises anything.
        """
        try:
            yield
        except CheckpointError:
            raise
        except arrays.ORBAX_ERRORS as error:
            raise CheckpointError(
                f"Cannot save to {self._directory}: {arrays.cause(error)}. The run can go on from "
                f"step {self.latest_step() or 0} when this is mended."
            ) from error

    def _refuse_another_config(self, step: int) -> None:
        theirs = self._completed(read_item(self._workdir, step, "config"))
        changed = config_lib.differences(theirs, self._config)
        if refused := [line for line in changed if not self._free(line.partition(": ")[0])]:
            raise CheckpointError(
                f"Checkpoint {step_directory(self._workdir, step)} was made with another config "
                "(checkpoint -> now):\n"
                "  " + "\n  ".join(refused) + "\nSet these fields back, or give another --workdir"
                f"{self._advice([line.partition(': ')[0] for line in refused])}."
            )

    def _free(self, field: str) -> bool:
        return any(re.fullmatch(pattern, field) for pattern in self._may_differ)


def steps(workdir: PathLike) -> list[int]:
    """Returns the steps of a run's checkpoints, oldest first; [] if there are none.

    Those that are being saved are not among them, but damaged ones may be.
    """
    directory = Path(workdir) / "checkpoints"
    if not directory.is_dir():
        return []
    if not paths.is_local(directory):  # a directory that is being saved has its name from the start
        found = ocp.path.step.standard_name_format().find_all(directory)
        return sorted(each.step for each in found)
    names = [entry.name for entry in directory.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def step_directory(workdir: PathLike, step: int) -> Path:
    """Returns WORKDIR/checkpoints/STEP."""
    return Path(workdir) / "checkpoints" / str(step)


def check_step(
    workdir: PathLike, step: int, *, only: Callable[[str], bool] = lambda name: True
) -> manifest.Contents | None:
    """Compares the files of a step with its manifest; all processes of a run call it together.

    Args:
        workdir: the run's.
        step: the step.
        only: only(name) says whether a file is checked.

    Returns:
        How much was checked; None if the step is of an old version and has no manifest.

    Raises:
        DamageError: if a file is missing, cut off or changed.
        CheckpointError: if a file cannot be read for another reason, such as a permission.
    """
    directory = step_directory(workdir, step)
    if problem := from_first_process(_what_is_missing(directory)):
        raise DamageError(problem)
    return manifest.check(directory, required=False, only=only)


def _what_is_missing(directory: Path) -> str:
    """Returns which part of a step is missing or, without a manifest, no JSON; "" if none is."""
    if not directory.is_dir():
        return "not a directory"
    for item in _ITEMS:
        if not (directory / item).is_dir():
            return f"{item}: missing"
    if (directory / manifest.NAME).exists():
        return ""
    if orbax_notes.say_manifest(directory):
        return f"{manifest.NAME}: missing"
    for name in ("data/metadata", "config/metadata"):
        try:
            manifest.read_object(directory / name)
        except paths.PathError:
            return f"{name}: {'not a JSON object' if (directory / name).exists() else 'missing'}"
    return ""


def read_item(workdir: PathLike, step: int, item: str) -> dict[str, Any]:
    """Returns the item "config", "data" or "unreported" of a step.

    Raises:
        CheckpointError: if there is no such step, or the file is damaged.
    """
    if step not in (there := steps(workdir)):
        raise CheckpointError(
            f"{workdir} holds no complete checkpoint of step {step}; it holds {there or 'none'}."
        )
    try:
        # orbax's JSON handler names the file so
        return manifest.read_object(step_directory(workdir, step) / item / "metadata")
    except paths.PathError as error:
        raise CheckpointError(
            f"Checkpoint {step_directory(workdir, step)} is damaged: {error}"
        ) from error
