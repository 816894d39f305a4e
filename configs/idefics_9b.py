r"""IDEFICS-9B (Hugging Face M4, 2023), converted.

LLaMA-7B, CLIP-H/14, a cross-attention layer before every 4th block.

    COMMAND
        # idefics-9b: a clone of HuggingFaceM4/idefics-9b of the Hugging Face hub (or
        # idefics-9b-instruct); 18 GB in bfloat16
        python -m flamingo_jax.convert --source=idefics --input=idefics-9b \
            --output=DIR/idefics_9b
        python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper \
            --checkpoint=DIR/idefics_9b --output=DIR/report --config.inference.beam_ends=best \
            --config.data.coco=... \
            --task=okvqa,vqav2,textvqa,vizwiz,flickr30k,hateful_memes,coco
    EXPECTED
        DIR/report/results.json. The publishers' scores at 0, 4, 8, 16 and 32 shots (their model
        card) have other prompts than ours, so they are no promise. COCO's training images are among
        the training data.

        VQAv2          50.9 55.4 56.4 57.0 57.9        OKVQA          38.4 45.5 47.7 48.4 49.6
        TextVQA        25.9 27.6 27.5 27.9 28.3        VizWiz         35.5 36.9 40.4 42.6 43.7
        COCO           46.0 93.0 97.0 99.7 98.0        Flickr30k      27.3 59.7 61.9 64.5 64.4
        HatefulMemes   51.7 50.7 51.0 50.9 49.8

    COMMAND
        python -m flamingo_jax.train --config=configs/idefics_9b.py:DIR --workdir=DIR/run
    EXPECTED
        Further training of its resampler, cross-attention and new tokens on web pages and pairs.

8,929,677,072 weights: LLaMA-7B 6,738,415,616, CLIP-H 630,763,520 (without its last norm), resampler
and 8 layers 1.56B, 2 new tokens.
"""

import dataclasses

from ml_collections import config_dict

from configs import lm_open
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig

LLAMA_7B = lm_open.MODELS["llama_7b"].lm
LLAMA = {
    "9b": LLAMA_7B,
    "80b": dataclasses.replace(LLAMA_7B, num_layers=80, width=8192, num_heads=64, mlp_width=22_016),
}


def model(size: str) -> ModelConfig:
    """Returns the parts of an IDEFICS.

    Args:
        size: "9b" or "80b".
    """
    lm = LLAMA[size]
    return dataclasses.replace(
        sizes.PARTS,
        vision=None,
        # 257 vectors (the class and 256 patches), no last norm.
        vit=dataclasses.replace(sizes.VITS["H14"], features="class_and_patches"),
        lm=lm,
        resampler=ResamplerConfig(
            width=1280,
            head_dim=96,  # version 2 of the paper
            input_projection=False,
            num_time_embeddings=0,
            activation="relu",
            mlp_bias=False,
            qk_norm=True,
            final_norm=True,
        ),
        xattn=XattnConfig(
            every=4,
            activation="swiglu",
            mlp_width=lm.mlp_width,
            media="resampler",
            media_norm=False,
            norm="rms",
            norm_epsilon=1e-6,
            qk_norm=True,
        ),
        new_tokens=("<fake_token_around_image>", "<image>"),
    )


def datasets(directory: str, *, pages: int, pairs: int) -> dict[str, DatasetConfig]:
    """Returns public datasets like those it was trained on: OBELICS and LAION.

    Args:
        directory: has one directory of records for each dataset, as data_pipelines writes them.
        pages: rows of web pages in a batch.
        pairs: rows of image-text pairs in a batch.
    """
    return {
        # p_next=0: text attends the image before it, never the next one.
        "obelics": DatasetConfig(
            "interleaved",
            f"{directory}/obelics",
            batch_size=pages,
            length=512,
            max_images=8,
            p_next=0.0,
        ),
        "laion": DatasetConfig(
            "pairs", f"{directory}/laion", batch_size=pairs, length=64, weight=0.2, space_prefix=0.0
        ),
    }


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the converted model and the datasets.
    """
    converted = f"{data}/idefics_9b"
    config = TrainConfig(
        name="idefics_9b",
        stage="flamingo",
        steps=10_000,
        model=model("9b"),
        data=DataConfig(
            converted,
            image_size=224,
            image_fit="squash",
            background="white",
            datasets=datasets(data, pages=256, pairs=512),
        ),
        initial=converted,
        # Our choice, like the batches: a tenth of the rate of new layers (paper, B.1.2).
        optimizer=OptimizerConfig(learning_rate=1e-5),
        mesh=MeshConfig(data=16, model=4),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
