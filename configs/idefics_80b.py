r"""IDEFICS-80B (Hugging Face M4, 2023), converted.

LLaMA-65B, CLIP-H/14, a cross-attention layer before every 4th block.

    COMMAND
        # idefics-80b: a clone of HuggingFaceM4/idefics-80b of the Hugging Face hub (or
        # idefics-80b-instruct); 160 GB in bfloat16
        python -m flamingo_jax.convert --source=idefics --input=idefics-80b \
            --output=gs://BUCKET/idefics_80b
        launch/tpu_pod.sh evaluate --name=NAME -- --config=configs/evaluate.py:paper \
            --checkpoint=gs://BUCKET/idefics_80b --output=gs://BUCKET/report \
            --config.mesh.model=16 --config.mesh.data=-1 --config.inference.beam_ends=best \
            --config.data.coco=... --task=...
    EXPECTED
        The publishers' scores at 0, 4, 8, 16 and 32 shots (their model card) have other prompts
        than ours, so they are no promise. COCO's training images are among the training data.

        VQAv2          60.0 63.6 64.8 65.4 65.9        OKVQA          45.2 52.4 55.1 56.8 57.8
        TextVQA        30.9 34.4 35.7 36.3 36.7        VizWiz         36.0 40.4 46.1 48.3 50.0
        COCO           91.8 110.3 114.3 116.6 116.6    Flickr30k      53.7 73.7 76.6 80.1 81.1
        HatefulMemes   60.6 57.8 58.2 55.8 52.5

    COMMAND
        python -m flamingo_jax.plan --config=configs/idefics_80b.py --topology=v4:4x8x8 \
            [--program=prefill|decode]
    EXPECTED
        The plan says "fits" (libtpu 0.0.42.1). With --datasets=laion: 14.2 GiB per chip and an MFU
        of 0.30 for a batch of pairs; with --datasets=obelics 22.8 GiB and 0.31 for pages.
        On 16 chips (v4:2x2x4), prefill of 32 shots in 1,024 tokens takes 14.5 GiB per chip,
        decoding 12.7.

    COMMAND
        launch/tpu_pod.sh train --name=NAME --mount=BUCKET:/data -- \
            --config=configs/idefics_80b.py:/data --workdir=gs://BUCKET/run
    EXPECTED
        Further training on your own data.

79,967,841,064 weights: LLaMA-65B 65,285,660,672, CLIP-H 630,763,520 (without its last norm),
resampler and 20 layers 14.05B, 2 new tokens.
"""

from ml_collections import config_dict

from configs import idefics_9b
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
    converted = f"{data}/idefics_80b"
    config = TrainConfig(
        name="idefics_80b",
        stage="flamingo",
        steps=10_000,
        model=idefics_9b.model("80b"),
        data=DataConfig(
            converted,
            image_size=224,
            image_fit="squash",
            background="white",
            datasets=idefics_9b.datasets(data, pages=256, pairs=512),
        ),
        initial=converted,
        optimizer=OptimizerConfig(learning_rate=1e-5),  # ours, as for the 9B
        # 65B frozen and 14B trained weights in bfloat16 are 10 GB on each of 16 chips; 64 heads and
        # a dense part of 22016 = 16 * 1376 divide.
        # data: all chips of the slice.
        mesh=MeshConfig(data=-1, model=16),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
