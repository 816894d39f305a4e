r"""OpenFlamingo-3B (LAION, 2023), converted.

MPT-1B, OpenAI's CLIP ViT-L/14, a cross-attention layer before every block.

    COMMAND
        # Clones of the Hugging Face hub: openflamingo/OpenFlamingo-3B-vitl-mpt1b,
        # anas-awadalla/mpt-1b-redpajama-200b and openai/clip-vit-large-patch14; for 3B-I
        # openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct and
        # anas-awadalla/mpt-1b-redpajama-200b-dolly.
        python -m flamingo_jax.convert --source=open_flamingo --output=DIR/open_flamingo_3b \
            --input=OpenFlamingo-3B-vitl-mpt1b/checkpoint.pt \
            --lm=mpt-1b-redpajama-200b --vision=clip-vit-large-patch14
        python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper \
            --checkpoint=DIR/open_flamingo_3b --output=DIR/report \
            --config.inference.beam_ends=best --config.data.coco=... \
            --task=coco,flickr30k,vqav2,okvqa,textvqa,vizwiz,hateful_memes
    EXPECTED
        DIR/report/results.json. The publishers' scores at 0, 4, 8, 16 and 32 shots (arXiv
        2308.01390, Table 11) have other prompts than ours, so they are no promise.

                       3B                              3B-I
        COCO           74.9 77.3 85.9 89.8 93.0        74.4 82.7 87.8 91.9 94.8
        Flickr30k      52.3 57.2 58.6 59.2 61.1        51.2 59.1 60.7 63.0 64.5
        VQAv2          44.6 45.8 46.2 46.6 47.0        44.1 45.7 45.9 45.8 44.8
        OKVQA          28.2 30.3 31.1 30.9 31.0        28.7 30.6 31.5 30.7 30.6
        TextVQA        24.2 27.0 27.7 28.0 28.3        23.1 28.1 29.1 29.1 28.5
        VizWiz         23.7 27.0 32.1 36.1 39.8        23.4 27.7 32.1 35.3 39.3
        HatefulMemes   51.2 50.6 52.0 48.5 50.2        50.1 49.5 50.7 48.7 47.8

    COMMAND
        python -m flamingo_jax.train --config=configs/open_flamingo_3b.py:DIR --workdir=DIR/run
    EXPECTED
        Further training of its resampler, cross-attention and new tokens on web pages and pairs.

Its resampler (63,019,008) and 24 layers (36,708,354 each) have 944,019,504 weights; with the token
table these are the 1,046,992,944 weights that its publishers trained.
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


def model(*, lm: str, every: int) -> ModelConfig:
    """Returns the parts of an OpenFlamingo.

    Args:
        lm: its language model, a key of `lm_open.MODELS`.
        every: blocks per cross-attention layer; the layer is before the last of them.
    """
    return dataclasses.replace(
        sizes.PARTS,
        vision=None,
        vit=sizes.VITS["L14"],  # OpenAI's, with 256 patches and no last norm
        # The pieces of GPT-NeoX' tokenizer; the rows of the three new tokens follow.
        lm=dataclasses.replace(lm_open.MODELS[lm].lm, vocab_size=50_277),
        resampler=ResamplerConfig(
            width=1024,
            num_heads=8,
            head_dim=64,
            input_projection=False,
            num_time_embeddings=0,
            activation="gelu_exact",
            mlp_bias=False,
            final_norm=True,
        ),
        xattn=XattnConfig(
            every=every,
            offset=every - 1,
            num_heads=8,
            head_dim=64,
            activation="gelu_exact",
            media="resampler",
            media_norm=False,
        ),
        new_tokens=("<EOC>", "<image>", "<PAD>"),
    )


def datasets(directory: str, *, pages: int) -> dict[str, DatasetConfig]:
    """Returns its training sets: MMC4 and LAION.

    Batches are 1 : 2 and losses 1 : 0.2, as in its publishers' run.

    Args:
        directory: has one directory of records for each dataset, as data_pipelines writes them.
        pages: rows of web pages in a batch.
    """
    return {
        # A page has 256 tokens and up to 6 images; p_next=0: text attends the image before it,
        # never the next one.
        "mmc4": DatasetConfig(
            "interleaved",
            f"{directory}/mmc4",
            batch_size=pages,
            length=256,
            max_images=6,
            p_next=0.0,
        ),
        "laion": DatasetConfig(
            "pairs",
            f"{directory}/laion",
            batch_size=2 * pages,
            length=32,
            weight=0.2,
            space_prefix=0.0,
        ),
    }


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory with the converted model and the datasets.
    """
    converted = f"{data}/open_flamingo_3b"
    config = TrainConfig(
        name="open_flamingo_3b",
        stage="flamingo",
        steps=10_000,
        model=model(lm="mpt_1b", every=1),
        data=DataConfig(
            converted,
            image_size=224,
            image_fit="crop",
            background="none",
            datasets=datasets(data, pages=256),
        ),
        initial=converted,
        # Our choice, like the batch: a tenth of the publishers' rate.
        optimizer=OptimizerConfig(learning_rate=1e-5),
        mesh=MeshConfig(data=64),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
