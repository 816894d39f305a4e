"""Evaluates a model few-shot, or a contrastive one zero-shot.

Results.json, tables, curves, and a sheet of prompts with the model's answers.

    python -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint=DIR --output=DIR [--task=a,b] [--shots=0,4]

`--checkpoint` is an export, a WORKDIR (its newest step) or WORKDIR/checkpoints/STEP.
`--task=lm_lookup` needs no more than a language model, `--task=embed` (image features, see
evaluation/embed.py) no more than a contrastive one; zero-shot classification and retrieval
(--config=configs/evaluate.py:contrastive) need just that. The same command again goes on where a
run was stopped. On several hosts the same command is run on each (launch/tpu_pod.sh does): the
prompts are spread over all devices, the first process writes the report.
"""

from __future__ import annotations

from absl import app, flags, logging
from ml_collections import config_flags

from flamingo_jax.core import host_memory, processes
from flamingo_jax.core.config import ConfigError, from_dict, in_one_message
from flamingo_jax.core.config_files import with_named_configs
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.metrics import MissingResourceError
from flamingo_jax.evaluation.run import run
from flamingo_jax.inference.model import EXPECTED_ERRORS

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to evaluate; any field: --config.a.b=value."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the report.")
_TASK = flags.DEFINE_list("task", None, "Tasks, in place of config.tasks.")
_SHOTS = flags.DEFINE_list("shots", None, "Numbers of support examples, in place of config.shots.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    processes.MODES,
    "Whether other processes run with the same flags; see core/processes.py.",
)


def main(argv: list[str]) -> None:
    """Reads the flags."""
    if argv[1:]:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}: fields of the config are set as --config.a.b=value."
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports each file that it reads
    host_memory.keep_freed()
    config = _CONFIG.value
    with processes.Cluster(
        _DISTRIBUTED.value, expected=(*EXPECTED_ERRORS, task.TaskError, MissingResourceError)
    ) as cluster:
        if _TASK.value is not None:
            config.tasks = tuple(_TASK.value)
        if _SHOTS.value is not None:
            if not all(number.isdecimal() for number in _SHOTS.value):
                raise ConfigError(
                    f"--shots={','.join(_SHOTS.value)}: expected numbers, as in --shots=0,4."
                )
            config.shots = tuple(map(int, _SHOTS.value))
        run(from_dict(EvaluateConfig, config), str(_CHECKPOINT.value), str(_OUTPUT.value), cluster)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "checkpoint", "output"])
    app.run(main, flags_parser=in_one_message(with_named_configs(app.parse_flags_with_usage)))
