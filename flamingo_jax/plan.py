"""Plans a run for a TPU slice without one.

Does it fit, how fast would it be, by the TPU compiler's estimates.

python -m flamingo_jax.plan --config=configs/flamingo_80b.py --topology=v4:8x12x16 [--program=train|prefill|decode] [--json=FILE]

Exit status: 0 it fits, 3 it does not (the largest buffers are named), 1 for a config or topology
that is wrong.
"""

from __future__ import annotations

import json
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from flamingo_jax.core.config import ConfigError, from_dict, in_one_message
from flamingo_jax.core.config_files import with_named_configs
from flamingo_jax.core.paths import Path, PathError, write_atomically
from flamingo_jax.planning import planner, summary
from flamingo_jax.planning.program import Prompts
from flamingo_jax.training.config import TrainConfig

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to plan, as FILE[:ARGUMENT]; --config.a.b=value."
)
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


def main(argv: list[str]) -> None:
    """Prints the plan that the flags describe."""
    if argv[1:]:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}: fields of the config are set as --config.a.b=value."
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    try:
        plan = planner.make_plan(
            from_dict(TrainConfig, _CONFIG.value),
            _TOPOLOGY.value,
            program=_PROGRAM.value,
            fill=planner.parse_fill(_FILL.value),
            datasets=_DATASETS.value,
            prompts=Prompts(_ROWS.value, _SHOTS.value, _LENGTH.value, _NEW.value),
        )
        print(summary.to_text(plan))
        if _JSON.value:
            write_atomically(Path(_JSON.value), json.dumps(summary.to_json(plan), indent=1) + "\n")
    except (ConfigError, PathError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if plan.fits else 3)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=in_one_message(with_named_configs(app.parse_flags_with_usage)))
