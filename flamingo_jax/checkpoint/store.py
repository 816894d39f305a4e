"""Saves and restores the checkpoints of a run.

    WORKDIR/config.json                 the resolved config
    WORKDIR/checkpoints/STEP/state/     trainable weights and optimizer state, as named arrays
                                        (orbax, OCDBT)
                            /data/      {dataset: position}, JSON
                            /config/    the resolved config, JSON

Checkpoints are saved in the background. A run finds its newest checkpoint again, and refuses one of
another config.

The training loop saves one tree, {"trainable": {module: {name: array}}, "opt_state": ..., "step":
int32 scalar}. Frozen towers are not in it: the entry "frozen" of the config names the export of
each (see `partial.frozen_record`). Every weight of the model is either trainable or below the
target of one of these entries.

A step appears by a rename (on gs://, by a commit file that is written last), so an incomplete one
does not count. In a cluster all processes make the same calls in the same order, and orbax
synchronises them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike

# A run may continue with other values in these fields. They decide how long and where it runs, not
# what it computes. A tower may have moved, because its hash (frozen.TOWER.hash) must be the same.
MAY_DIFFER = (
    r"name",
    r"steps",
    r"until(\..*)?",
    r"hooks(\..*)?",
    r"mesh(\..*)?",
    r"towers(\..*)?",
    r"frozen\.\w+\.path",
)


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
    ):
        """Opens the run, and refuses a workdir with another one.

        Args:
            workdir: created if it does not exist.
            config: the resolved config from `core.config.to_dict`, with "frozen" for the towers.
            keep: how many of the newest checkpoints are kept; at least 1.
            may_differ: regular expressions of dotted fields in which a checkpoint's config may
                differ from `config`.
            completed: adds to a checkpoint's config the fields that are newer than the checkpoint,
                with their defaults.

        Raises:
            PathError: if the workdir cannot be written.
            CheckpointError: if the newest checkpoint was made with another config; names the
                fields.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; expected at least 1 checkpoint to be kept.")
        self._workdir, self._config = paths.absolute(workdir), dict(config)
        self._may_differ, self._completed = may_differ, completed
        self._directory = paths.make_directory(self._workdir / "checkpoints")
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
                cleanup_tmp_directories=True,  # of a run that was killed
            ),
        )
        if (step := self.latest_step()) is not None:
            self._refuse_another_config(step)
        if ocp.multihost.process_index() == 0:
            paths.write_json(self._workdir / "config.json", self._config)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return max(steps(self._workdir), default=None)

    def save(self, step: int, state: Any, positions: Mapping[str, int]) -> bool:
        """Starts to save a step, and returns when the arrays are copied and may be donated.

        First waits for the previous save to end.

        Args:
            step: number of updates.
            state: tree of (sharded) arrays, without None and without frozen towers.
            positions: how many batches of each dataset were used.

        Returns:
            False if this step is already saved; then nothing is written.

        Raises:
            CheckpointError: if this save cannot start, or the previous one failed.
        """
        flat = arrays.named(state)
        try:
            self._manager.wait_until_finished()
            if step in self._manager.all_steps():
                return False
            return self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(flat),
                    data=ocp.args.JsonSave(dict(positions)),
                    config=ocp.args.JsonSave(self._config),
                ),
            )
        except arrays.ORBAX_ERRORS as error:
            raise CheckpointError(
                f"Cannot save to {self._directory}: {arrays.first_line(error)}"
            ) from error

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
        if step is None and (step := self.latest_step()) is None:
            raise CheckpointError(
                f"{self._directory} holds no complete checkpoint. Start the run from step 0."
            )
        self._refuse_another_config(step)
        wanted = arrays.named(like)
        directory = step_directory(self._workdir, step) / "state"
        arrays.compare(arrays.describe(directory), wanted, where=f"Checkpoint {directory}")
        found = arrays.read(directory, wanted)
        state = jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])
        return state, read_item(self._workdir, step, "data")

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
            CheckpointError: if it failed.
        """
        try:
            self._manager.wait_until_finished()
        except arrays.ORBAX_ERRORS as error:
            raise CheckpointError(
                f"Cannot save to {self._directory}: {arrays.first_line(error)}"
            ) from error

    def close(self) -> None:
        """Waits for the last save, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _refuse_another_config(self, step: int) -> None:
        theirs = self._completed(read_item(self._workdir, step, "config"))
        changed = config_lib.differences(theirs, self._config)
        if refused := [line for line in changed if not self._free(line.partition(": ")[0])]:
            raise CheckpointError(
                f"Checkpoint {step_directory(self._workdir, step)} was made with another config "
                "(checkpoint -> now):\n"
                "  " + "\n  ".join(refused) + "\nSet these fields back, or give another --workdir."
            )

    def _free(self, field: str) -> bool:
        return any(re.fullmatch(pattern, field) for pattern in self._may_differ)


def steps(workdir: PathLike) -> list[int]:
    """Returns the steps of a run's complete checkpoints, oldest first; [] if there are none."""
    directory = Path(workdir) / "checkpoints"
    if not directory.is_dir():
        return []
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(directory))


def step_directory(workdir: PathLike, step: int) -> Path:
    """Returns WORKDIR/checkpoints/STEP."""
    return Path(workdir) / "checkpoints" / str(step)


def read_item(workdir: PathLike, step: int, item: str) -> dict[str, Any]:
    """Returns the item "config" or "data" of a step.

    Raises:
        CheckpointError: if there is no such step, or the file is damaged.
    """
    if step not in (there := steps(workdir)):
        raise CheckpointError(
            f"{workdir} holds no complete checkpoint of step {step}; it holds {there or 'none'}."
        )
    try:
        # orbax's JSON handler names the file so
        return paths.read_json(step_directory(workdir, step) / item / "metadata")
    except paths.PathError as error:
        raise CheckpointError(
            f"Checkpoint {step_directory(workdir, step)} is damaged: {error}"
        ) from error
