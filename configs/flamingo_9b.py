"""Flamingo-9B: a 7.1B language model, cross-attention before every 4th block (paper, Table 5).

No model sharding, as in the paper.

    COMMAND
        python -m flamingo_jax.plan --config=configs/flamingo_9b.py --topology=v4:4x4x8
    EXPECTED
        The plan says "fits".

Table 4 of the paper has 40 blocks and 10 cross-attention layers, which are 8.86B + 2.01B weights;
32 blocks and 8 layers give the 7.1B + 1.6B of Table 5. This config has the latter (models/sizes.py
has both). Batches are twice the ablation's; the paper does not state those of its run.
"""

from ml_collections import config_dict

from configs import mixture
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the tokenizer and the datasets.
    """
    config = TrainConfig(
        name="flamingo_9b",
        stage="flamingo",
        steps=500_000,
        model=sizes.FLAMINGO_9B,
        data=DataConfig(
            f"{data}/tokenizer", image_size=320, datasets=mixture.datasets(data, scale=2)
        ),
        mesh=MeshConfig(data=128),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
