"""Converts a publisher's weights to an export, which evaluate, generate, train and plan take.

    python -m flamingo_jax.convert --source=nfnet_deepmind --input=F6_haiku.npz --output=DIR
    python -m flamingo_jax.convert --source=open_flamingo --input=checkpoint.pt --lm=DIR --vision=DIR --output=DIR [--dtype=bfloat16] [--dry_run]
    python -m flamingo_jax.convert --source=open_flamingo --back --input=DIR --output=checkpoint.pt

Files are local: *.safetensors (with model.safetensors.index.json too), *.pt and *.bin, a model's
directory; the output may be on gs://. No code of a file is run. Memory is needed for its largest
weight. --dry_run prints what becomes what, and writes nothing.
"""

from __future__ import annotations

import sys

from absl import app, flags, logging

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.conversion import publishers, writing
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathError

_SOURCE = flags.DEFINE_enum("source", None, list(publishers.SOURCES), "Whose weights they are.")
_INPUT = flags.DEFINE_string("input", None, "The file of weights, or the model's directory.")
_OUTPUT = flags.DEFINE_string("output", None, "The export to be; one that is there is replaced.")
_LM = flags.DEFINE_string("lm", None, "open_flamingo: the directory of its language model.")
_VISION = flags.DEFINE_string(
    "vision", None, "open_flamingo: its vision encoder's file or directory."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of all weights; as stored by default."
)
_OPTIONS = flags.DEFINE_multi_string(
    "option", [], "NAME=VALUE, as the source's module says; repeatable."
)
_BACK = flags.DEFINE_bool(
    "back",
    default=False,
    help="The other way: --input is an export, --output the publisher's file.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", default=False, help="Print the mapping; write nothing.")


def tell(line: str) -> None:
    """Shows on a terminal which weight it is at."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    """Converts, or prints the mapping."""
    if argv[1:]:
        raise app.UsageError(f"There are no positional arguments; got {argv[1:]}.")
    if (_BACK.value or not _DRY_RUN.value) and not _OUTPUT.value:
        raise app.UsageError("Give --output=DIR, or --dry_run.")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports each file that it writes
    if bad := [option for option in _OPTIONS.value if "=" not in option]:
        raise app.UsageError(f"--option={bad[0]} is not of the form NAME=VALUE.")
    options = dict(option.split("=", 1) for option in _OPTIONS.value)
    lm, vision = (Path(flag.value) if flag.value else None for flag in (_LM, _VISION))
    try:
        if _BACK.value:
            print(
                publishers.write_back(str(_SOURCE.value), Path(_INPUT.value), Path(_OUTPUT.value))
            )
            return
        conversion = publishers.describe(
            str(_SOURCE.value), publishers.Inputs(Path(_INPUT.value), lm, vision, options)
        )
        if _DRY_RUN.value:
            print(writing.table(conversion, dtype=_DTYPE.value))
            return
        output = writing.write(conversion, str(_OUTPUT.value), dtype=_DTYPE.value, tell=tell)
        tell("")
        print(f"{output}: kind {conversion.kind}, from {_SOURCE.value}")
    except (CheckpointError, ConfigError, PathError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "input"])
    app.run(main)
