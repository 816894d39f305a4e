r"""The 7.1B language model of Flamingo, trained like Chinchilla (Hoffmann et al. 2022).

    COMMAND
        python -m flamingo_jax.plan --config=configs/lm_7b.py --topology=v4:4x4x8
        launch/tpu_pod.sh train --name=NAME -- \
            --config=configs/lm_7b.py:/data --workdir=gs://BUCKET/lm_7b
    EXPECTED
        The plan says "fits".

32 blocks of width 4096 with 32 heads of 128: 7.112B weights (models/sizes.py). Chinchilla's 70B was
trained with a learning rate of 1e-4 and batches of 1.5M, then 3M tokens. Its paper has no row for
smaller models: we chose the learning rate and the batch. The clip is that of Gopher's 7.1B (0.25;
Gopher clips smaller models at 1).
"""

import dataclasses

from ml_collections import config_dict

from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the tokenizer and the records of text.
    """
    # 4 documents of 512 tokens fill a row of 2048. For other data,
    # `data_pipelines.run --pipeline=pool --rows_per_group=16` says how many documents suit them.
    text = DatasetConfig(
        "text", f"{data}/text", batch_size=1024, length=2048, documents_per_row=4, rows_per_group=16
    )
    config = TrainConfig(
        name="lm_7b",
        stage="language_model",
        steps=500_000,
        model=dataclasses.replace(sizes.FLAMINGO_80B, lm=sizes.trained("7.1B")),
        data=DataConfig(f"{data}/tokenizer", image_size=320, datasets={"text": text}),
        optimizer=OptimizerConfig(
            learning_rate=1.2e-4,
            warmup_steps=1_500,
            schedule="cosine",
            final_fraction=0.1,
            clip_norm=0.25,
        ),
        mesh=MeshConfig(data=32, model=4),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
