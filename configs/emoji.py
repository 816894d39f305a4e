r"""A small Flamingo that binds new words to drawings of emoji that it has never seen.

The pictures are those of two public sets of emoji, in npm packages. launch/emoji.sh runs all of it,
from the packages to the report. By hand, with INPUT the folder node_modules:

    COMMAND
        python -m data_pipelines.run --pipeline=emoji --input=INPUT --output=runs/emoji/records
        python -m data_pipelines.run --pipeline=tokenizer --model_type=word \
            --input=runs/emoji/records/text,runs/emoji/records/captions \
            --output=runs/emoji/tokenizer
        for stage in contrastive language_model flamingo; do
            python -m flamingo_jax.train --config=configs/emoji.py:$stage \
                --workdir=runs/emoji/$stage
        done
    EXPECTED
        `emoji_bind2` at 8 shots at least 0.60, rising with the shots, controls at chance;
        `emoji_name` at least 0.20 (chance is 0.01). The goal is 0.90 for `emoji_bind2`, and 0.70
        for `emoji_bind5` at 16 shots.
    MEASURED
        Seeds 1, 2, n = 1,000, ranking (30 November 2026, 2 CPU cores, 38 minutes for one seed):
        `emoji_bind2` 0.91, 0.92 at 2 shots, 0.94, 0.94 at 8; `emoji_bind5` 0.78, 0.81 at 16;
        `emoji_name` 0.33, 0.32. launch/README.md has all numbers.

`gpu` is a larger model with more data, for ten minutes of one GPU; its stages are `gpu,contrastive`
and so on, and `gpu` alone is the flamingo stage:

    COMMAND
        launch/emoji.sh --size=gpu; by hand as above, with --size=gpu --image_size=48 for the
        records, and --config=configs/emoji.py:gpu,$stage
    EXPECTED
        `emoji_bind2` at least 0.90 at 8 shots, `emoji_bind5` at least 0.70 at 16.
    MEASURED
        Not yet, and on no GPU. On a CPU its models were built, and no update was made.

The arithmetic: there are 1,634 training concepts in two styles, less 341 drawings that are kept for
evaluation: 2,927 drawings, and 16 pictures of 32 x 32 pixels of each, 46,832. The model is that of
configs/tiny.py with a language model of width 96, since there are 1,805 words and not 110.
"""

import dataclasses
import functools

from ml_collections import config_dict

from configs import small_models, tiny
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import AugmentConfig, DatasetConfig
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.training.config import TowersConfig, TrainConfig

RUN = "runs/emoji"
STAGES = ("contrastive", "language_model", "flamingo")

assert tiny.MODEL.lm
MODEL = dataclasses.replace(tiny.MODEL, lm=dataclasses.replace(tiny.MODEL.lm, width=96))

MODELS = {"base": MODEL, "gpu": tiny.GPU_MODEL}

# {stage: {field: its value}} of `gpu`, where the default has another; all unmeasured. By the counts
# of planning/flops.py the updates need 1.3e15 + 1.0e15 + 1.2e15 = 3.5e15 FLOP. At 3 % of their
# peaks, which is little, that is 120 s of an H200 and 370 s of an A100; at 8e10 FLOP/s of two CPU
# cores, 12 hours. One thread that reads needs 140, 40 and 220 s (a core of an AMD EPYC under other
# load: 0.12 ms for a picture that is kept decoded, 0.43 ms for one that is not, 2.4 ms for a page).
# The 15M weights and the activations of an update fit in 8 GB.
GPU = {
    # 2,000 x 512 = 1.02M pictures, 22 passes over 2,927 x 16 = 46,832.
    "contrastive": {
        "steps": 2_000,
        "data.datasets.captions.batch_size": 512,
        "optimizer.learning_rate": 1.5e-3,
        "optimizer.warmup_steps": 100,
    },
    # 3,000 x 64 x 160 = 31M tokens, 1.5 passes over 131,072 documents of up to 158 words.
    "language_model": {
        "steps": 3_000,
        "data.datasets.text.batch_size": 64,
        "data.datasets.text.length": 160,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 100,
    },
    # A page has up to 17 pictures, so that 16 examples and a query are no longer than what is
    # learnt; 160 tokens are 9 for each, as in the default. On average it has 12.5:
    # 2,000 x (32 x 12.5 + 128) = 1.06M pictures.
    "flamingo": {
        "steps": 2_000,
        "data.datasets.pages.batch_size": 32,
        "data.datasets.pages.length": 160,
        "data.datasets.pages.max_images": 17,
        "data.datasets.pairs.batch_size": 128,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 400,
    },
}
IMAGE_SIZE = 48  # of `gpu`

# Half of the pictures are flipped, and the colours of all are changed: a name must be found for
# the drawing of another vendor, with other colours. A flip makes a left arrow a right one; 41 of
# the 1,634 names say left or right.
AUGMENT = AugmentConfig(flip=0.5, brightness=0.1, contrast=0.3, saturation=0.3, hue=0.03)

_config = functools.partial(
    small_models.train_config,
    tokenizer=f"{RUN}/tokenizer",
    benchmarks={"emoji": f"{RUN}/records"},
)


def get_config(argument: str = "flamingo") -> config_dict.ConfigDict:
    """Returns the config of one stage; all stages of a size have the same model.

    Args:
        argument: STAGE: contrastive, language_model or flamingo; or SIZE,STAGE or SIZE, with base
            or gpu.

    Raises:
        ValueError: there is no such stage or size.
    """
    size, stage = small_models.size_and_stage(
        argument, config="emoji", sizes=tuple(MODELS), stages=STAGES
    )
    make = {"contrastive": _contrastive, "language_model": _language_model, "flamingo": _flamingo}
    config = editable(make[stage](MODELS[size]))
    if size == "gpu":
        config.name = f"{config.name}_gpu"
        config.data.image_size = IMAGE_SIZE
        config.update_from_flattened_dict(small_models.ON_A_GPU | GPU[stage])
    return config


def _contrastive(model: ModelConfig) -> TrainConfig:
    """Returns the stage that trains the vision encoder.

    800 x 256 = 204,800 pictures, about 4 passes over the data.
    """
    # The longest caption has 8 words; with <BOS> and <EOS> 10 tokens.
    captions = DatasetConfig("captions", f"{RUN}/records/captions", batch_size=256, length=12)
    return _config(
        "emoji_contrastive",
        "contrastive",
        model=model,
        steps=800,
        datasets={"captions": captions},
        optimizer=small_models.adam(learning_rate=3e-3, warmup_steps=50),
        augment=AUGMENT,
    )


def _language_model(model: ModelConfig) -> TrainConfig:
    """Returns the stage that trains on text with look-ups: 1,500 x 32 x 96 = 4.6M tokens."""
    text = DatasetConfig(
        "text", f"{RUN}/records/text", batch_size=32, length=96, documents_per_row=1
    )
    return _config(
        "emoji_language_model",
        "language_model",
        model=model,
        steps=1_500,
        datasets={"text": text},
        optimizer=small_models.adam(learning_rate=3e-3, warmup_steps=50),
    )


def _flamingo(model: ModelConfig) -> TrainConfig:
    """Returns the flamingo stage, with both towers frozen.

    2,400 x (24 pages of 8 pictures + 192 pairs) = 921,600 pictures. A name is two words on average,
    and the loss is a mean over about 7 tokens of a pair: the weight makes up for the others.
    """
    # A page is 8 x "<image> output : NAME <EOC>", with 1 to 8 words in a name, and 2 on average.
    pages = DatasetConfig(
        "interleaved",
        f"{RUN}/records/pages",
        batch_size=24,
        length=72,
        max_images=8,
        weight=1.0,
        p_next=0.0,
    )
    # <BOS>, <image>, "a picture of", at most 8 words, <EOC> and <EOS>.
    pairs = DatasetConfig(
        "pairs",
        f"{RUN}/records/pairs",
        batch_size=192,
        length=16,
        weight=2.0,
        p_next=0.0,
        space_prefix=0.0,
    )
    return _config(
        "emoji_flamingo",
        "flamingo",
        model=model,
        steps=2_400,
        datasets={"pages": pages, "pairs": pairs},
        # Gates start at 0. After a short warm-up the weights behind them move at full speed before
        # the gates open, and then these hardly open at all.
        optimizer=small_models.adam(learning_rate=2.5e-3, warmup_steps=400),
        augment=AUGMENT,
        towers=TowersConfig(lm=f"{RUN}/language_model/export", vision=f"{RUN}/contrastive/export"),
    )
