r"""Converts a publisher's weights to an export, which evaluate, generate, train and plan take.

    python -m flamingo_jax.convert --source=nfnet_deepmind --input=F6_haiku.npz --output=DIR
    python -m flamingo_jax.convert --source=open_flamingo --input=checkpoint.pt --lm=DIR \
        --vision=DIR --output=DIR [--dtype=bfloat16] [--dry_run]
    python -m flamingo_jax.convert --source=open_flamingo --back --input=DIR --output=checkpoint.pt

The inputs are files (*.safetensors, *.pt, *.bin, model.safetensors.index.json), directories of a
model, or names of the Hugging Face Hub, org/name[@revision][:file] (checkpoint/hub.py). The output
may be on gs://. No code in a file is run. Memory is needed for the largest weight only. --dry_run
prints what becomes what, and writes nothing.
"""

from __future__ import annotations

import sys

from absl import app, flags

from flamingo_jax import cli
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.conversion import publishers, writing
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathError
from flamingo_jax.core.processes import Cluster

_SOURCE = flags.DEFINE_enum("source", None, list(publishers.SOURCES), "Who published the weights.")
_INPUT = flags.DEFINE_string("input", None, "File, directory or org/name[@revision].")
_OUTPUT = flags.DEFINE_string("output", None, "The export; an export that is there is replaced.")
_LM = flags.DEFINE_string("lm", None, "open_flamingo: directory of its language model.")
_VISION = flags.DEFINE_string("vision", None, "open_flamingo: vision encoder, file or directory.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of all weights; as stored by default."
)
_OPTIONS = flags.DEFINE_multi_string(
    "option", [], "NAME=VALUE, as the source's module says; repeatable."
)
_BACK = flags.DEFINE_bool(
    "back", default=False, help="From an export (--input) to the publisher's file (--output)."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", default=False, help="Print the mapping; write nothing.")


def show(line: str) -> None:
    """Shows the weight that is being written, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def main(_: list[str], __: Cluster) -> None:
    """Converts, or prints the mapping."""
    if (_BACK.value or not _DRY_RUN.value) and not _OUTPUT.value:
        raise app.UsageError("Give --output=DIR, or --dry_run.")
    if bad := [option for option in _OPTIONS.value if "=" not in option]:
        raise app.UsageError(f"--option={bad[0]} is not of the form NAME=VALUE.")
    options = dict(option.split("=", 1) for option in _OPTIONS.value)
    source, weights = str(_SOURCE.value), Path(_INPUT.value)
    if _BACK.value:
        if more := [f.name for f in (_LM, _VISION, _DTYPE, _OPTIONS, _DRY_RUN) if f.value]:
            raise app.UsageError(f"--back takes no --{more[0]}.")
        print(publishers.write_back(source, weights, Path(_OUTPUT.value)))
        return
    lm, vision = (Path(flag.value) if flag.value else None for flag in (_LM, _VISION))
    conversion = publishers.describe(source, publishers.Inputs(weights, lm, vision, options))
    if _DRY_RUN.value:
        print(writing.table(conversion, dtype=_DTYPE.value))
        return
    output = writing.write(conversion, str(_OUTPUT.value), dtype=_DTYPE.value, report=show)
    show("")
    for note in conversion.notes:
        print(f"Note: {note}")
    print(f"{output}: kind {conversion.kind}, from {source}")


if __name__ == "__main__":
    expected = (CheckpointError, ConfigError, PathError)
    cli.run(main, required=["source", "input"], expected=expected)
