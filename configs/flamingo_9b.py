"""Flamingo-9B (Table 5): a 7.1B language model, a cross-attention layer before every 4th block.

No model sharding, as in the paper.

    COMMAND  python -m flamingo_jax.plan --config=configs/flamingo_9b.py --topology=v4:4x4x8
    EXPECTED The plan says "fits".

Table 4 gives 40 blocks and 10 cross-attention layers, which are 8.86B + 2.01B weights; 32 blocks
and 8 layers give the 7.1B + 1.6B of Table 5, and are taken here (models/sizes.py has both).
Batches: twice the ablation's; those of the paper's run are not stated.
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
        data: directory of the tokenizer and of the datasets.
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
