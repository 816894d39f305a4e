"""Evaluates a model few-shot: results.json, tables, curves, and a sheet of prompts with the model's answers.

    python -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint=DIR --output=DIR [--task=a,b] [--shots=0,4]

`--checkpoint` is an export, a WORKDIR (its newest step) or WORKDIR/checkpoints/STEP. `--task=lm_lookup` needs no more than a language model.
On several hosts the same command is run on each (launch/tpu_pod.sh does): the prompts are spread over all devices, the first process writes the report.
"""

from __future__ import annotations

from absl import app, flags, logging
from ml_collections import config_flags

from flamingo_jax.core import processes
from flamingo_jax.core.config import ConfigError, from_dict, in_one_message
from flamingo_jax.evaluation import logs, report, task
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.runner import evaluate_all, write_predictions
from flamingo_jax.inference.api import EXPECTED_ERRORS, Flamingo
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to evaluate; any field: --config.a.b=value.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "An export, a WORKDIR, or WORKDIR/checkpoints/STEP.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the report.")
_TASK = flags.DEFINE_list("task", None, "Tasks, in place of config.tasks.")
_SHOTS = flags.DEFINE_list("shots", None, "Numbers of support examples, in place of config.shots.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", processes.MODES, "Whether other processes run with the same flags; see core/processes.py."
)


def run(config: EvaluateConfig, checkpoint: str, output: str, cluster: processes.Cluster) -> None:
    """Evaluates on all processes of `cluster`; the first of them writes the report into `output`."""
    data = {name: path for name, path in config.data.items() if path}
    tasks = [task.create(name, data) for name in config.tasks]
    is_default = set(config.mesh.sizes().values()) == {1}  # one device; of several processes, all devices
    if is_default:
        mesh = make_mesh(MeshConfig(data=-1)) if cluster.count > 1 else None
    else:
        mesh = make_mesh(config.mesh)
    model = Flamingo.load(checkpoint, config.towers, config=config.inference, mesh=mesh)
    settings = {"n": config.n, "seed": config.seed, "split": config.split, "batch_size": config.batch_size}
    results = evaluate_all(model, tasks, config.shots, log=cluster.tell, num_samples=config.num_samples, **settings)
    if cluster.index > 0:
        return
    rows = [row for result in results for row in result.rows]
    report.write_report(
        output,
        rows,
        [sample for result in results for sample in result.samples],
        logs.training_logs(checkpoint),
        chance={each.name: each.chance for each in tasks if each.chance is not None},
        image_size=model.engine.image_size,
    )
    write_predictions(f"{output}/predictions.jsonl", results)
    cluster.tell(f"\n{report.text_table(rows)}\nThe report is in {output}")


def main(argv: list[str]) -> None:
    """Reads the flags."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments {argv[1:]}: fields of the config are set as --config.a.b=value.")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports each file that it reads
    config = _CONFIG.value
    with processes.Cluster(_DISTRIBUTED.value, expected=(*EXPECTED_ERRORS, task.TaskError)) as cluster:
        if _TASK.value is not None:
            config.tasks = tuple(_TASK.value)
        if _SHOTS.value is not None:
            if not all(number.isdecimal() for number in _SHOTS.value):
                raise ConfigError(f"--shots={','.join(_SHOTS.value)}: expected numbers, as in --shots=0,4.")
            config.shots = tuple(map(int, _SHOTS.value))
        run(from_dict(EvaluateConfig, config), str(_CHECKPOINT.value), str(_OUTPUT.value), cluster)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "checkpoint", "output"])
    app.run(main, flags_parser=in_one_message(app.parse_flags_with_usage))
