r"""Flamingo-3B: a 1.4B language model, cross-attention before every block (paper, Tables 4 and 5).

No model sharding, as in the paper.

    COMMAND
        python -m flamingo_jax.plan --config=configs/flamingo_3b.py --topology=v4:4x4x4
        launch/tpu_pod.sh train --name=NAME -- \
            --config=configs/flamingo_3b.py:/data --workdir=gs://BUCKET/3b \
            --config.towers.lm=gs://BUCKET/lm/export \
            --config.towers.vision=gs://BUCKET/vision/export
    EXPECTED
        The plan says "fits": MFU 0.23. With configs/flamingo_3b.py:4x it is 0.36, in 24.9 GiB per
        chip.
        The paper: 0-shot COCO CIDEr 73.0, 32-shot 99.0 (Table 1); its data are private.

The argument is the directory of the tokenizer and of the records; or 4x[,DIRECTORY] for batches of
4 times the size, or as many times as you say. Without it, batches have the ablation's sizes
(B.3.1); the paper does not state those of its final run. `mesh.data` is the number of chips: change
it with the topology.
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
    scale, data = mixture.scale_and_directory(argument, 1)
    config = TrainConfig(
        name="flamingo_3b",
        stage="flamingo",
        steps=500_000,
        model=sizes.FLAMINGO_3B,
        data=DataConfig(
            f"{data}/tokenizer", image_size=320, datasets=mixture.datasets(data, scale=scale)
        ),
        mesh=MeshConfig(data=64),  # 64 divides the smallest batch, VTP's 64 rows
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
