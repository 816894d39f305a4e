"""Trains one stage: language_model, contrastive or flamingo.

Started again, it goes on from its newest checkpoint.

    python -m flamingo_jax.train --config=configs/tiny.py:flamingo --workdir=runs/flamingo [--config.steps=1000 ...]

On several hosts the same command is run on each (launch/tpu_pod.sh does): each reads its part of
the data, the first one writes the log.
"""

from __future__ import annotations

from absl import app, flags, logging
from ml_collections import config_flags

from flamingo_jax.core import host_memory, processes
from flamingo_jax.core.config import from_dict, in_one_message
from flamingo_jax.core.config_files import with_named_configs
from flamingo_jax.evaluation import during_training
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.sharding.compile import use_compilation_cache
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import EXPECTED_ERRORS, train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to train, as FILE[:ARGUMENT]; --config.a.b=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, export, metrics.", required=True
)
_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Keeps compiled programs there (or env JAX_COMPILATION_CACHE_DIR)."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    processes.MODES,
    "Whether other processes run with the same flags; see core/processes.py.",
)


def main(argv: list[str]) -> None:
    """Runs the stage that the flags describe."""
    if argv[1:]:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}: fields of the config are set as --config.a.b=value."
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports each file that it writes
    host_memory.keep_freed()
    if _CACHE.value:
        use_compilation_cache(_CACHE.value)
    with processes.Cluster(_DISTRIBUTED.value, expected=(*EXPECTED_ERRORS, TaskError)) as cluster:
        train(
            from_dict(TrainConfig, _CONFIG.value),
            _WORKDIR.value,
            probes={"lm_lookup": during_training.lm_lookup},
            evaluation=during_training.evaluation,
            tell=cluster.tell,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=in_one_message(with_named_configs(app.parse_flags_with_usage)))
