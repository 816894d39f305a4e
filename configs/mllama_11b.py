r"""Llama 3.2 Vision 11B (Meta, 2024), converted.

Llama 3.1 8B, a tiled ViT, a cross-attention layer before every 4th block, and no resampler.

    COMMAND
        # Llama-3.2-11B-Vision-Instruct: a clone of meta-llama/Llama-3.2-11B-Vision-Instruct of the
        # Hugging Face hub (or Llama-3.2-11B-Vision); 21 GB in bfloat16
        python -m flamingo_jax.convert --source=mllama --input=Llama-3.2-11B-Vision-Instruct \
            --output=DIR/mllama_11b
        python -m flamingo_jax.generate --checkpoint=DIR/mllama_11b \
            --prompt='{cat.jpg}What breed is it?' --max_new_tokens=64
        python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper \
            --checkpoint=DIR/mllama_11b --output=DIR/report --config.data.coco=... \
            --task=vqav2,textvqa,coco
    EXPECTED
        DIR/report/results.json. The publisher's scores are of other prompts than ours, without
        examples, so they are no promise.

    COMMAND
        python -m flamingo_jax.plan --config=configs/mllama_11b.py --topology=v4:2x2x1 \
            --program=prefill|decode
    EXPECTED
        What a TPU needs to answer prompts. By the compiler's estimates (30 November 2026, libtpu
        0.0.42.1) 4 chips read a prompt of 5 images and 256 tokens in 3.1 s, nearly all of it for
        the encoder, in 11.0 GiB per chip; a token takes 19 ms, in 4.9 GiB. Training this model
        further was not tried.

10,670,220,835 weights: Llama 3.1 8B 8,030,261,248, tiled ViT 863,567,379 and its projection
31,461,376, 8 layers of cross-attention 1,744,898,064, 8 new tokens. The base model has tiles of 448
pixels, and 27,279,360 weights less, in tables of positions.
"""

import dataclasses

from ml_collections import config_dict

from configs import idefics_9b, lm_open
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.nn.embed import RotaryScaling
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig

LLAMA_8B = dataclasses.replace(
    lm_open.MODELS["llama3_8b"].lm,
    rotary_scaling=RotaryScaling(factor=8.0, low=1.0, high=4.0, original_length=8192),
)
LLAMA = {
    "11b": LLAMA_8B,
    "90b": dataclasses.replace(LLAMA_8B, num_layers=80, width=8192, num_heads=64, mlp_width=28_672),
}


def model(size: str) -> ModelConfig:
    """Returns the parts of a Llama 3.2 Vision, with the tiles of the instruct models.

    Args:
        size: "11b" or "90b".
    """
    lm = LLAMA[size]
    return dataclasses.replace(
        sizes.PARTS,
        vision=None,
        tiled_vit=sizes.TILED_VITS["llama"],
        lm=lm,
        resampler=None,
        xattn=XattnConfig(
            every=4,
            offset=3,
            num_kv_heads=lm.num_kv_heads,
            activation="swiglu",
            mlp_width=lm.mlp_width,
            media_norm=False,
            norm="rms",
            qk_norm=True,
            attend="run",
            skip_unseen=True,
        ),
        new_tokens=("<image>", *(f"<additional_{number}>" for number in range(1, 8))),
        predicts_new_tokens=False,
    )


def datasets(directory: str, *, pages: int, pairs: int) -> dict[str, DatasetConfig]:
    """Returns public datasets: OBELICS and LAION.

    Args:
        directory: has one directory of records for each dataset, as data_pipelines writes them.
        pages: rows of web pages in a batch.
        pairs: rows of image-text pairs in a batch.
    """
    obelics, laion = idefics_9b.datasets(directory, pages=pages, pairs=pairs).values()
    return {  # of an image, 4 tiles
        "obelics": dataclasses.replace(obelics, max_images=4, num_frames=4),
        "laion": dataclasses.replace(laion, num_frames=4),
    }


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the converted model and the datasets.
    """
    converted = f"{data}/mllama_11b"
    config = TrainConfig(
        name="mllama_11b",
        stage="flamingo",
        steps=10_000,
        model=model("11b"),
        data=DataConfig(
            converted,
            image_size=560,
            background="white",
            datasets=datasets(data, pages=64, pairs=128),
        ),
        initial=converted,
        # Our choice, like the batches: a tenth of the rate of new layers (paper, B.1.2).
        optimizer=OptimizerConfig(learning_rate=1e-5),
        mesh=MeshConfig(data=-1, model=4),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
