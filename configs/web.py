r"""The demo's small model on your own data: web pages, image-text pairs, videos and text.

All four datasets of the paper's kinds, at a size for a laptop or one GPU; configs/flamingo_3b.py
and the larger ones take the same datasets at the paper's sizes. Run this from the repository root,
with a crawl in runs/web/crawl (WARC files), img2dataset's tar files in runs/web/laion, clips in
runs/web/clips and documents in runs/web/jsonl:

    COMMAND
        data="python -m data_pipelines.run"
        $data --pipeline=m3w       --input=runs/web/crawl --output=runs/web/m3w
        $data --pipeline=pairs     --input=runs/web/laion --output=runs/web/pairs
        $data --pipeline=videos    --input=runs/web/clips --output=runs/web/videos
        $data --pipeline=text      --input=runs/web/jsonl --output=runs/web/text
        $data --pipeline=tokenizer --input=runs/web/text  --output=runs/web/tokenizer
        $data --pipeline=inspect   --dataset=runs/web/m3w --output=runs/web/samples \
            --tokenizer=runs/web/tokenizer
        for stage in contrastive language_model flamingo; do
            python -m flamingo_jax.train --config=configs/web.py:$stage --workdir=runs/web/$stage
        done
    EXPECTED
        A loss that falls on each dataset. The model is far too small to describe photographs.
"""

from ml_collections import config_dict

from configs import tiny
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import AugmentConfig, DatasetConfig

DATA = "runs/web"


def get_config(stage: str = "flamingo") -> config_dict.ConfigDict:
    """Returns the config of one stage.

    Args:
        stage: contrastive, language_model or flamingo.
    """
    config = tiny.get_config(stage)
    config.name = f"web_{stage}"
    config.data.tokenizer = f"{DATA}/tokenizer"
    config.data.image_size = 64  # 8 x 8 features
    config.data.augment = editable(AugmentConfig())
    config.data.datasets = editable(_datasets(stage))
    config.until = None
    config.evaluate.data.world = None
    config.model.new_tokens = ("<EOC>",)  # <image> is plain text, as in the paper
    config.model.lm.rotary_base = 10_000.0
    config.model.text_encoder.max_length = 32
    config.model.contrastive.duplicates = "negatives"
    if stage == "flamingo":
        config.towers.update(
            lm=f"{DATA}/language_model/export", vision=f"{DATA}/contrastive/export"
        )
    return config


def _datasets(stage: str) -> dict[str, DatasetConfig]:
    """Returns the datasets of a stage.

    The flamingo stage has the lambdas and lengths of the paper's mixture (configs/mixture.py), and
    small batches.
    """
    if stage == "contrastive":
        return {"pairs": DatasetConfig("captions", f"{DATA}/pairs", batch_size=256, length=32)}
    if stage == "language_model":
        return {"text": DatasetConfig("text", f"{DATA}/text", batch_size=16, length=256)}
    return {
        "m3w": DatasetConfig(
            "interleaved", f"{DATA}/m3w", batch_size=16, length=256, max_images=5, weight=1.0
        ),
        "pairs": DatasetConfig("pairs", f"{DATA}/pairs", batch_size=32, length=32, weight=0.2),
        "videos": DatasetConfig(
            "pairs",
            f"{DATA}/videos",
            batch_size=4,
            length=32,
            num_frames=8,
            frame_rate=1.0,
            weight=0.03,
        ),
    }
