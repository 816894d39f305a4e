r"""Evaluates a model few-shot, or a contrastive one zero-shot.

    python -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint=DIR --output=DIR \
        [--task=a,b] [--shots=0,4]

Writes results.json, tables, curves, and pages with prompts and the model's answers.

    python -m flamingo_jax.evaluate --report=TABLE3,runs/base,runs/every_4th [--output=DIR]

joins runs into a table or figure of the paper (evaluation/report/joined.py), without a model.

`--checkpoint` is an export, a WORKDIR (its newest step) or WORKDIR/checkpoints/STEP.
`--task=lm_lookup` needs only a language model. `--task=embed` (image features, see
evaluation/embed.py), zero-shot classification and retrieval
(--config=configs/evaluate.py:contrastive) need only a contrastive model. The same command again
continues where a run was stopped. On several hosts the same command is run on each
(launch/tpu_pod.sh does it): the prompts are spread over all devices, and the first process writes
the report.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from flamingo_jax import cli
from flamingo_jax.core.agreement import AgreementError
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.report import joined
from flamingo_jax.evaluation.run import run
from flamingo_jax.evaluation.runner import EXPECTED_ERRORS

cli.config_flag("What to evaluate; any field")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the report.")
_TASK = flags.DEFINE_list("task", None, "Tasks, in place of config.tasks.")
_SHOTS = flags.DEFINE_list("shots", None, "Numbers of support examples, in place of config.shots.")
_REPORT = flags.DEFINE_list(
    "report", None, f"NAME,RUN,RUN,...: joins runs; NAME is {', '.join(joined.NAMES)}."
)
_GROUPS = flags.DEFINE_string("groups", None, "For CAPTIONS: CSV or JSON lines, groups of images.")
_TOXICITY = flags.DEFINE_string("toxicity", None, "For CAPTIONS: MODULE:FUNCTION, texts -> 0..1.")
cli.distributed_flag()


def main(_: list[str], cluster: Cluster) -> None:
    """Evaluates what the config and the flags name, or joins runs."""
    if _REPORT.value:
        name, *runs = _REPORT.value
        print(joined.join(name, runs, _OUTPUT.value, _GROUPS.value, _TOXICITY.value))
        return
    config = cli.read_config(EvaluateConfig)
    if _TASK.value is not None:
        config = dataclasses.replace(config, tasks=tuple(_TASK.value))
    if _SHOTS.value is not None:
        if not all(number.isdecimal() for number in _SHOTS.value):
            raise ConfigError(
                f"--shots={','.join(_SHOTS.value)}: expected numbers, as in --shots=0,4."
            )
        config = dataclasses.replace(config, shots=tuple(map(int, _SHOTS.value)))
    run(config, str(_CHECKPOINT.value), str(_OUTPUT.value), cluster)


if __name__ == "__main__":
    for name in ("config", "checkpoint", "output"):
        message = f"Flag --{name} must have a value other than None."  # as of a required flag
        flags.register_validator(name, lambda got: got is not None or bool(_REPORT.value), message)
    expected = (*EXPECTED_ERRORS, AgreementError)
    cli.run(main, required=[], expected=expected, keep_freed=True)
