r"""Fine-tunes on one benchmark: a grid of runs, the best of them by validation, and its test.

    python -m flamingo_jax.finetune --config=configs/finetune_grid.py:vqav2,/data,3b \
        --workdir=runs/vqav2 --config.run.initial=runs/flamingo \
        --config.run.evaluate.data.vqav2=/official/vqav2

Prints Table 2 with the published row (evaluation/fine_tuning.py). The same command again continues:
runs that are done are not run again, and a run that was stopped resumes. A point of the grid alone
is trained by flamingo_jax.train with configs/finetune.py.
"""

from __future__ import annotations

import functools

from absl import flags

from flamingo_jax import cli
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import during_training, fine_tuning
from flamingo_jax.evaluation.config import FineTuneConfig
from flamingo_jax.evaluation.runner import EXPECTED_ERRORS as ERRORS_OF_EVALUATION
from flamingo_jax.planning import peaks
from flamingo_jax.training.run import EXPECTED_ERRORS, train

cli.config_flag("What to search, as FILE[:ARGUMENT]")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the search: runs, grid.json, report.", required=True
)
cli.distributed_flag()


def main(_: list[str], cluster: Cluster) -> None:
    """Searches the grid that the flags describe, and tests the best run."""
    config = cli.read_config(FineTuneConfig)
    evaluation = functools.partial(during_training.evaluation, go_on=cluster.guard.go_on)
    best = fine_tuning.search(
        config,
        _WORKDIR.value,
        train=functools.partial(
            train,
            evaluation=evaluation,
            utilisation=peaks.utilisation,
            report=cluster.report,
            guard=cluster.guard,
        ),
        report=cluster.report,
    )
    cluster.report(f"The best run is {best.workdir}")
    cluster.guard.watch(0.0)  # no training run is left; a test has no limit, as in `evaluate`
    cluster.report(fine_tuning.test(config, best, _WORKDIR.value, cluster))


if __name__ == "__main__":
    expected = (*EXPECTED_ERRORS, *ERRORS_OF_EVALUATION)
    cli.run(main, required=["config"], expected=expected, keep_freed=True, saves=True)
