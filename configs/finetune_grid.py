r"""The grid of fine-tuning on one benchmark, searched by flamingo_jax.finetune (paper, B.2.2).

    COMMAND
        python -m data_pipelines.run --pipeline=benchmark --task=vqav2 \
            --input=/official/vqav2 --output=/data/vqav2
        python -m flamingo_jax.finetune --config=configs/finetune_grid.py:vqav2,/data,3b \
            --workdir=runs/vqav2 --config.run.initial=runs/flamingo_3b \
            --config.run.evaluate.data.vqav2=/official/vqav2
    EXPECTED
        Table 2 of the paper has the results of Flamingo-80B; no run of this size was made here.

The argument is that of configs/finetune.py. `run.seed` decides the validation queries, which
training must not show: it is the --seed of the records.

The paper states the learning rates, the batches, and augmentation on or off. It says that the rate
falls by factors of 10, and that the number of updates is searched: which, is our choice. So is the
early choice: 96 runs to an eighth of their updates, 48 to a quarter, 24 to a half, 12 to the end,
as much as 30 whole runs.
"""

from ml_collections import config_dict

from configs import finetune
from flamingo_jax.core.config import editable, from_dict
from flamingo_jax.evaluation.config import FineTuneConfig
from flamingo_jax.training.config import TrainConfig

NO_AUGMENTATION = " ".join(
    f"data.augment.{name}=0" for name in ("flip", "brightness", "contrast", "saturation", "hue")
)


def get_config(argument: str = "vqav2") -> config_dict.ConfigDict:
    """Returns the search for one task.

    Args:
        argument: TASK, TASK,DIRECTORY or TASK,DIRECTORY,SIZE.

    Raises:
        ValueError: if there is no such task or size.
    """
    task, run = argument.partition(",")[0], finetune.get_config(argument)
    run.evaluate.n = 0
    grid = finetune.GRID
    batch = f"data.datasets.{task}.batch_size"
    axes = {
        "learning_rate": _axis("optimizer.learning_rate", grid["optimizer.learning_rate"]),
        "decay": {
            "10": "optimizer.final_fraction=0.1",
            "100": "optimizer.final_fraction=0.01",
        },
        "batch_size": _axis(batch, grid["batch_size"]),
        "updates": _axis("steps", grid["steps"]),
        "augment": {"on": "", "off": NO_AUGMENTATION},
    }
    return editable(FineTuneConfig(task, from_dict(TrainConfig, run), axes))


def _axis(field: str, values: tuple) -> dict[str, str]:
    """Returns {label: field=value} of an axis."""
    return {f"{value:g}": f"{field}={value}" for value in values}
