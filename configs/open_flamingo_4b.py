r"""OpenFlamingo-4B (LAION, 2023), converted.

RedPajama-INCITE-3B, OpenAI's CLIP ViT-L/14, a cross-attention layer for every 2 blocks.

    COMMAND
        # Clones of the Hugging Face hub: openflamingo/OpenFlamingo-4B-vitl-rpj3b,
        # togethercomputer/RedPajama-INCITE-Base-3B-v1 and openai/clip-vit-large-patch14; for 4B-I
        # openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct and
        # togethercomputer/RedPajama-INCITE-Instruct-3B-v1.
        python -m flamingo_jax.convert --source=open_flamingo --output=DIR/open_flamingo_4b \
            --input=OpenFlamingo-4B-vitl-rpj3b/checkpoint.pt \
            --lm=RedPajama-INCITE-Base-3B-v1 --vision=clip-vit-large-patch14
        python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper \
            --checkpoint=DIR/open_flamingo_4b --output=DIR/report \
            --config.inference.beam_ends=best --config.data.coco=... \
            --task=coco,flickr30k,vqav2,okvqa,textvqa,vizwiz,hateful_memes
    EXPECTED
        DIR/report/results.json. The publishers' scores at 0, 4, 8, 16 and 32 shots (arXiv
        2308.01390, Table 11) have other prompts than ours, so they are no promise.

                       4B                              4B-I
        COCO           76.7 81.8 90.7 93.9 95.1        81.2 85.8 94.8 98.0 99.2
        Flickr30k      53.6 60.7 55.9 56.8 56.9        55.6 61.2 59.0 54.8 53.0
        VQAv2          45.1 49.0 48.3 45.5 43.0        46.9 49.0 47.4 45.1 47.3
        OKVQA          30.7 35.1 33.9 28.5 26.4        31.7 34.6 33.7 31.3 34.7
        TextVQA        21.0 25.9 21.3 18.2 14.1        21.1 27.2 25.1 23.2 23.2
        VizWiz         18.8 26.6 28.8 24.6 23.1        21.5 26.5 29.1 31.0 31.3
        HatefulMemes   52.3 51.5 55.2 54.5 52.2        53.1 54.9 58.5 56.9 54.9

        The rows of its new tokens were never trained (its publishers' section 3.1); further
        training here trains them.

    COMMAND
        python -m flamingo_jax.train --config=configs/open_flamingo_4b.py:DIR --workdir=DIR/run
        python -m flamingo_jax.convert --source=open_flamingo --back \
            --input=DIR/run --output=checkpoint.pt
    EXPECTED
        Further training, and its result as PyTorch reads it. Its head is untied, so that the file
        has a place for trained new tokens.
"""

from ml_collections import config_dict

from configs import open_flamingo_3b
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
    converted = f"{data}/open_flamingo_4b"
    config = TrainConfig(
        name="open_flamingo_4b",
        stage="flamingo",
        steps=10_000,
        model=open_flamingo_3b.model(lm="redpajama_3b", every=2),
        data=DataConfig(
            converted,
            image_size=224,
            image_fit="crop",
            background="none",
            datasets=open_flamingo_3b.datasets(data, pages=256),
        ),
        initial=converted,
        optimizer=OptimizerConfig(learning_rate=1e-5),  # our choice, as for the 3B
        mesh=MeshConfig(data=64),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
