"""What `hooks.on_nonfinite = "skip"` adds to an update: FLOPs and bytes, by the compiler's count.

    python -m tests.benchmarks.skip_nonfinite

It compiles the steps of configs/tiny.py, with a vocabulary of 600, and runs nothing. So other work
on the machine does not matter.
"""

from __future__ import annotations

import jax

from flamingo_jax.core import config_files
from flamingo_jax.core.overrides import Override
from flamingo_jax.planning import program
from flamingo_jax.sharding import mesh as mesh_lib
from flamingo_jax.training.config import TrainConfig

STAGES = ("language_model", "flamingo")
COUNTS = ("flops", "bytes accessed")


def count(stage: str, on_nonfinite: str) -> list[float]:
    """Returns COUNTS of one compiled update."""
    fields = [
        Override("hooks.on_nonfinite", on_nonfinite),
        Override("model.lm.vocab_size", "600"),
    ]
    config = config_files.read(TrainConfig, f"tiny:{stage}", fields)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices())
    analysis = program.train(config, mesh, {}).lowered.compile().cost_analysis()
    return [analysis[name] for name in COUNTS]


def main() -> None:
    """Prints a line for each stage."""
    for stage in STAGES:
        stop, skip = (count(stage, how) for how in ("stop", "skip"))
        more = [100 * (new / old - 1) for new, old in zip(skip, stop, strict=True)]
        print(
            f"{stage}: " + ", ".join(f"{m:+.2f} % {n}" for m, n in zip(more, COUNTS, strict=True))
        )


if __name__ == "__main__":
    main()
