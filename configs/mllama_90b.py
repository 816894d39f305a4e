r"""Llama 3.2 Vision 90B (Meta, 2024), converted.

Llama 3.1 70B, the tiled ViT of the 11B, a cross-attention layer before every 4th block.

    COMMAND
        # Llama-3.2-90B-Vision-Instruct: a clone of meta-llama/Llama-3.2-90B-Vision-Instruct of the
        # Hugging Face hub (or Llama-3.2-90B-Vision); 177 GB in bfloat16
        python -m flamingo_jax.convert --source=mllama --input=Llama-3.2-90B-Vision-Instruct \
            --output=gs://BUCKET/mllama_90b
        launch/tpu_pod.sh evaluate --name=NAME -- --config=configs/evaluate.py:paper \
            --checkpoint=gs://BUCKET/mllama_90b --output=gs://BUCKET/report \
            --config.mesh.model=8 --config.mesh.data=-1 --config.data.coco=... --task=...
    EXPECTED
        The publisher's scores are of other prompts than ours, so they are no promise.

    COMMAND
        python -m flamingo_jax.plan --config=configs/mllama_90b.py --topology=v4:2x2x2 \
            --program=prefill|decode
    EXPECTED
        What a TPU needs to answer prompts. By the compiler's estimates (30 November 2026, libtpu
        0.0.42.1) 8 chips read a prompt of 5 images and 256 tokens in 3.3 s, of which the encoder
        takes 3.1 s, in 27.0 GiB per chip; a token takes 63 ms, in 21.0 GiB. Training this model
        further was not tried.

88,593,355,323 weights: Llama 3.1 70B 70,553,706,496, tiled ViT 863,567,379 and its projection
62,922,752, 20 layers of cross-attention 17,113,093,160, 8 new tokens.
"""

from ml_collections import config_dict

from configs import mllama_11b
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the converted model and the datasets.
    """
    converted = f"{data}/mllama_90b"
    config = TrainConfig(
        name="mllama_90b",
        stage="flamingo",
        steps=10_000,
        model=mllama_11b.model("90b"),
        data=DataConfig(
            converted,
            image_size=560,
            background="white",
            datasets=mllama_11b.datasets(data, pages=64, pairs=128),
        ),
        initial=converted,
        optimizer=OptimizerConfig(learning_rate=1e-5),  # ours, as for the 11B
        # 8 key and value heads divide over 8 chips; 89B weights in bfloat16 are 22 GB on each.
        mesh=MeshConfig(data=-1, model=8),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
