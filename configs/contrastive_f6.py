r"""The vision encoder: NFNet-F6 against BERT on ALIGN and LTIP (paper, 2.1, B.1.3).

On 512 TPUv4 chips, as in the paper.

    COMMAND
        python -m flamingo_jax.plan --config=configs/contrastive_f6.py --topology=v4:8x8x8
        launch/tpu_pod.sh train --name=NAME --mount=BUCKET:/data -- \
            --config=configs/contrastive_f6.py:/data --workdir=gs://BUCKET/vision
    EXPECTED
        The plan (libtpu 0.0.42.1): 9.4 GiB per chip, 0.67 s per update, MFU 0.22; 9.3 days.
        The paper, zero-shot (B.1.3, Table 9): ImageNet 77.9; Flickr30k R@1 89.3 image to text,
        79.5 text to image; COCO 65.9 and 48.0. Its data are private.

The paper states: a joint space of 1376, batches of 16,384, 1.2M updates of two gradients each (a
batch of ALIGN and one of LTIP, accumulated), Adam, a learning rate that falls linearly from 1e-3 to
0, label smoothing 0.1, adaptive clipping of 1e-2 on the NFNet, a global norm of 10 on BERT, 288
pixels, flips and colours.

The paper does not state, and we chose: BERT's size (BERT-Large as in ALIGN, from which the paper
takes the tokenizer and the joint space); 32 tokens per caption (means: 12.4 and 20.5); no
stochastic depth; the initial temperature, and that it is clipped with BERT.

For a larger batch or fewer chips, --config.data.datasets.NAME.chunks=4 encodes a quarter of the
rows at a time, each row twice; memory then does not grow with the batch.
"""

import dataclasses

from ml_collections import config_dict

from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig, VisionOptimizerConfig

# BERT-Large: 334M weights with 32,000 pieces.
TEXT = TextEncoderConfig(
    vocab_size=0, num_layers=24, width=1024, num_heads=16, max_length=32, token_types=2
)


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the tokenizer and the two datasets.
    """
    datasets = {
        name: DatasetConfig("captions", f"{data}/{name}", batch_size=16_384, length=32)
        for name in ("align", "ltip")
    }
    config = TrainConfig(
        name="contrastive_f6",
        stage="contrastive",
        steps=1_200_000,
        model=dataclasses.replace(
            sizes.PARTS,
            # Without remat: the activations of 32 images, 45 GiB per chip.
            vision=dataclasses.replace(sizes.NFNETS["F6"], remat="full"),
            text_encoder=TEXT,
        ),
        data=DataConfig(f"{data}/tokenizer", image_size=288, datasets=datasets),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            warmup_steps=0,
            schedule="linear",
            weight_decay=0.0,
            clip_norm=10.0,
            vision=VisionOptimizerConfig(agc=1e-2),
        ),
        # 512 = 16 x 32 chips. ZeRO-1 splits over data: 32 divides the NFNet's widths 1536, 768, 512
        # and 256; 512 does not.
        mesh=MeshConfig(replica=16, data=32),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
