r"""Plans a run for a TPU slice, without one: whether it fits, and how fast it would be.

    python -m flamingo_jax.plan --config=configs/flamingo_80b.py --topology=v4:8x12x16 \
        [--program=train|prefill|decode] [--json=FILE]

The numbers are estimates of the TPU compiler. Exit status: 0 if the run fits, 3 if it does not (the
largest buffers are named), 1 if the config or the topology is wrong.
"""

from __future__ import annotations

import json

from absl import flags, logging

from flamingo_jax import cli
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathError, write_atomically
from flamingo_jax.core.processes import Cluster
from flamingo_jax.planning import planner, summary
from flamingo_jax.planning.program import Prompts
from flamingo_jax.training.config import TrainConfig

cli.config_flag("What to plan, as FILE[:ARGUMENT]")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "A slice: v4:8x12x16, v5e:4x4, v5p:4x4x8, v6e:16x16, ...", required=True
)
_PROGRAM = flags.DEFINE_enum(
    "program", "train", ["train", "prefill", "decode"], "What is compiled."
)
_JSON = flags.DEFINE_string("json", None, "Writes the plan there, too.")
_FILL = flags.DEFINE_list(
    "fill", [], "Mean real content of a dataset's rows: NAME=TOKENS[:IMAGES]; full rows by default."
)
_DATASETS = flags.DEFINE_list("datasets", None, "Plans for these datasets of the config alone.")
_ROWS = flags.DEFINE_integer(
    "batch_size", 0, "prefill, decode: prompts of a batch; 0: one for each batch shard."
)
_SHOTS = flags.DEFINE_integer("shots", 4, "prefill, decode: support examples of a prompt.")
_LENGTH = flags.DEFINE_integer("length", 256, "prefill, decode: tokens of a prompt.")
_NEW = flags.DEFINE_integer("new_tokens", 20, "prefill, decode: room for the answer.")


def main(_: list[str], __: Cluster) -> int:
    """Prints the plan that the flags describe."""
    plan = planner.make_plan(
        cli.read_config(TrainConfig),
        _TOPOLOGY.value,
        program=_PROGRAM.value,
        fill=planner.parse_fill(_FILL.value),
        datasets=_DATASETS.value,
        prompts=Prompts(_ROWS.value, _SHOTS.value, _LENGTH.value, _NEW.value),
    )
    print(summary.to_text(plan))
    if _JSON.value:
        write_atomically(
            Path(_JSON.value), json.dumps(summary.to_json(plan), indent=1, allow_nan=False) + "\n"
        )
    return 0 if plan.fits else 3


if __name__ == "__main__":
    expected = (ConfigError, PathError)
    cli.run(main, required=["config"], expected=expected, log_level=logging.ERROR)
