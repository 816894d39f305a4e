r"""Checks the files of checkpoints against their manifests; writes exports in 8 bits.

    python -m flamingo_jax.checkpoint verify DIR [DIR ...]
    python -m flamingo_jax.checkpoint int8 EXPORT DIR

DIR is a WORKDIR (all its steps, its export and its frozen towers), WORKDIR/checkpoints/STEP, or an
export; local or on gs://. It prints one line for each:

    ok           runs/lm/checkpoints/2000: 14 files, 402,653,184 bytes
    damaged      runs/lm/checkpoints/3000: state/d/9f3c: cut off: got 512 bytes, expected 1,024
    no manifest  runs/old/export: its files cannot be checked

The exit status is 1 if one is damaged, or if there is none. Nothing is changed, and no accelerator
is used, so a run may go on meanwhile.

`int8` writes a copy of an export with the towers' products in 8 bits, for inference (models/int8).
"""

from __future__ import annotations

import jax
from absl import app

from flamingo_jax import cli
from flamingo_jax.checkpoint import int8_export
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.verify import verify
from flamingo_jax.core.paths import PathError
from flamingo_jax.core.processes import Cluster


def main(arguments: list[str], _: Cluster) -> int:
    """Prints a line for each checkpoint, or writes an export; returns the exit status."""
    jax.config.update("jax_platforms", "cpu")
    if arguments[:1] == ["int8"] and len(arguments) == 3:
        print(f"Wrote {int8_export.write(*arguments[1:])}.")
        return 0
    if not arguments[1:] or arguments[0] != "verify":
        raise app.UsageError("Expected: verify DIR [DIR ...], or int8 EXPORT DIR.")
    states = set()
    for directory in arguments[1:]:
        for verdict in verify(directory):
            print(f"{verdict.state:11}  {verdict.path}: {verdict.detail}", flush=True)
            states.add(verdict.state)
    return int("damaged" in states)


if __name__ == "__main__":
    cli.run(main, required=[], expected=(CheckpointError, PathError), positional=True)
