"""Flamingo-9B: a 7.1B language model, cross-attention before every 4th block (paper, Table 5).

No model sharding, as in the paper.

    COMMAND
        python -m flamingo_jax.plan --config=configs/flamingo_9b.py --topology=v4:4x4x8
    EXPECTED
        The plan says "fits": MFU 0.32. With configs/flamingo_9b.py:4x and
        --config.precision.frozen=int8 it is 0.40, in 24.1 GiB per chip.

Table 4 of the paper has 40 blocks and 10 cross-attention layers, which are 8.86B + 2.01B weights;
32 blocks and 8 layers give the 7.1B + 1.6B of Table 5. This config has the latter (models/sizes.py
has both).

The argument is the directory of the tokenizer and of the records; or Nx[,DIRECTORY] for batches of
N times the ablation's. Without it they are twice the ablation's; the paper does not state those of
its run.
"""

from ml_collections import config_dict

from configs import mixture
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig


def get_config(argument: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        argument: DIRECTORY, Nx or Nx,DIRECTORY (`mixture.scale_and_directory`).
    """
    scale, data = mixture.scale_and_directory(argument, 2)
    config = TrainConfig(
        name="flamingo_9b",
        stage="flamingo",
        steps=500_000,
        model=sizes.FLAMINGO_9B,
        data=DataConfig(
            f"{data}/tokenizer", image_size=320, datasets=mixture.datasets(data, scale=scale)
        ),
        mesh=MeshConfig(data=128),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
