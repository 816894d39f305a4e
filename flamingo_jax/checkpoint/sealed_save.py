"""Makes the manifest of a step while orbax saves the step in the background.

    each process       writes its arrays -> hashes its files -> state/manifest.process_3.json
    the first process  waits for all -> hashes the other files -> STEP/manifest.json

Then orbax renames STEP from its temporary name. So a step that appears has a manifest, and a
process that did not write its part is noticed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from flamingo_jax.checkpoint import manifest
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path


class HashingHandler(ocp.PyTreeCheckpointHandler):
    """Saves arrays as its parent does, and lets each process hash the files that it wrote."""

    async def async_save(
        self, directory: Path, *args: Any, **kwargs: Any
    ) -> Sequence[ocp.future.Future]:
        """Starts to write and to hash, and returns what to wait for."""
        writes = await super().async_save(directory, *args, **kwargs) or []
        hashed = ocp.future.CommitFutureAwaitingContractedSignals(
            _hash_own_part(directory, writes), name="manifest"
        )
        return [*writes, hashed]


async def _hash_own_part(state: Path, writes: Sequence[ocp.future.Future]) -> None:
    for write in writes:
        await asyncio.to_thread(write.result)
    index = jax.process_index()
    own = state / f"ocdbt.process_{index}"
    names = [f"{own.name}/{name}" for name in manifest.files(own)] if own.exists() else []
    entries = manifest.entries(state, names)
    content = {name: dataclasses.asdict(entry) for name, entry in entries.items()}
    paths.write_json(_part(state, index), content)


def seal(step: Path) -> None:
    """Writes the manifest of a step that all processes have written; the first process calls it.

    Args:
        step: the step, under its temporary name.

    Raises:
        CheckpointError: if the part of a process is not there.
    """
    state = step / "state"
    entries: dict[str, manifest.FileHash] = {}
    for index in range(jax.process_count()):
        part = _part(state, index)
        if not part.exists():
            raise CheckpointError(
                f"Process {index} wrote no part of step {step.name.partition('.')[0]} that process "
                "0 sees. Give a --workdir on a disk that all hosts share."
            )
        content = paths.read_json(part)
        entries |= {f"state/{name}": manifest.FileHash(**entry) for name, entry in content.items()}
        part.unlink()
    there = set(manifest.files(step))
    if missing := sorted(entries.keys() - there):
        raise CheckpointError(
            f"Files of step {step.name.partition('.')[0]} are gone while it is saved: "
            f"{missing[0]}. Look for a program that deletes files in {step.parent}."
        )
    manifest.write(step, entries | manifest.entries(step, there - entries.keys()))


def _part(state: Path, index: int) -> Path:
    return state / f"manifest.process_{index}.json"
