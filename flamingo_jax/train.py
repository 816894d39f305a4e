r"""Trains one stage: language_model, contrastive or flamingo.

    python -m flamingo_jax.train --config=configs/tiny.py:flamingo --workdir=runs/flamingo \
        [--config.steps=1000 ...]

The same command again continues from the newest checkpoint. SIGTERM or Ctrl-C save one first, and
end with status 75 (core/exit_status.py); a second one ends at once. On several hosts the same
command is run on each (launch/tpu_pod.sh does it): each host reads its part of the data, and the
first one writes the log.
"""

from __future__ import annotations

import functools

from absl import flags

from flamingo_jax import cli
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import during_training
from flamingo_jax.evaluation.runner import EXPECTED_ERRORS as ERRORS_OF_EVALUATION
from flamingo_jax.planning import peaks
from flamingo_jax.sharding.compile import use_compilation_cache
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import EXPECTED_ERRORS, train

cli.config_flag("What to train, as FILE[:ARGUMENT]")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, export, metrics.", required=True
)
_CACHE = flags.DEFINE_string(
    "compilation_cache", None, "Keeps compiled programs there (or env JAX_COMPILATION_CACHE_DIR)."
)
cli.distributed_flag()


def main(_: list[str], cluster: Cluster) -> None:
    """Runs the stage that the flags describe."""
    if _CACHE.value:
        use_compilation_cache(_CACHE.value)
    train(
        cli.read_config(TrainConfig),
        _WORKDIR.value,
        probes={"lm_lookup": during_training.lm_lookup},
        evaluation=functools.partial(during_training.evaluation, go_on=cluster.guard.go_on),
        utilisation=peaks.utilisation,
        report=cluster.report,
        guard=cluster.guard,
    )


if __name__ == "__main__":
    expected = (*EXPECTED_ERRORS, *ERRORS_OF_EVALUATION)
    cli.run(main, required=["config"], expected=expected, keep_freed=True, saves=True)
