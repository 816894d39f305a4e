r"""Flamingo-80B on 1536 TPUv4 chips, as in the paper (paper, Tables 4 and 5, B.1.2).

    COMMAND
        python -m flamingo_jax.plan --config=configs/flamingo_80b.py --topology=v4:8x12x16
        launch/tpu_pod.sh train --name=NAME --mount=BUCKET:/data -- \
            --config=configs/flamingo_80b.py:/data --workdir=gs://BUCKET/80b \
            --config.towers.lm=gs://BUCKET/lm/export \
            --config.towers.vision=gs://BUCKET/vision/export
    EXPECTED
        The plan (libtpu 0.0.42.1): 23.4 GiB per chip, 2.53 s per update, MFU 0.40; 14.6 days.
        8way: 23.2 GiB per chip, 2.01 s per update, MFU 0.50; 11.6 days.
        Few-shot results equal the paper's (Table 1) only with its data, which are private.

The argument is the directory of the tokenizer and of the records; or 8way[,DIRECTORY]: model groups
of 8 chips with frozen weights in 8 bits, in place of the paper's groups of 16. Half as many chips
gather and sum activations of half as many rows, so that the model axis sends half the bytes.
"""

import dataclasses

from ml_collections import config_dict

from configs import mixture
from flamingo_jax.core.config import editable
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import DataConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig


def get_config(argument: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        argument: DIRECTORY, 8way or 8way,DIRECTORY.
    """
    first, _, rest = argument.partition(",")
    data = argument if first != "8way" else rest or "/data"
    config = TrainConfig(
        name="flamingo_80b",
        stage="flamingo",
        steps=500_000,
        model=sizes.FLAMINGO_80B,
        # 12 times the ablation's batches: 3072, 6144, 6144 and 768 rows, all divisible by the 96
        # batch shards. The arithmetic:
        #     15 days / 500k updates                           = 2.6 s an update
        #     peak of 1536 chips in 2.6 s                      = 1.1e18 FLOPs
        #     ablation's batch, 100,352 tokens + 2,816 frames  = 35e15 FLOPs; 12 x is an MFU of 0.4
        data=DataConfig(
            f"{data}/tokenizer", image_size=320, datasets=mixture.datasets(data, scale=12)
        ),
        # 1536 chips = 96 batch shards x 16. ZeRO-1 splits over data: 32 divides the width of 8192,
        # 96 does not. A model group is a block of 4x2x2 neighbouring chips, so that its collectives
        # use three axes of the torus. Halves in turn hide gathers behind products.
        mesh=MeshConfig(replica=3, data=32, model=16, model_chips=(4, 2, 2), halves=True),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    if first == "8way":
        # Towers in 8 bits need on each of 8 chips the memory that bfloat16 needs on each of 16. A
        # corner of a block of 2x2x2 chips has three links, as one of 4x2x2. In so small a block
        # an all-to-all loads a link 1.7 times as much as a reduce-scatter, and can be hidden.
        mesh = MeshConfig(
            replica=3, data=64, model=8, model_chips=(2, 2, 2), halves=True, sums="all_to_all"
        )
        config = dataclasses.replace(
            config, name="flamingo_80b_8way", mesh=mesh, precision=Policy(frozen="int8")
        )
    return editable(config)
