r"""A small Flamingo that binds new words to drawings of emoji that it has never seen.

The pictures are those of two public sets of emoji, in npm packages. launch/emoji.sh runs all of it,
from the packages to the report. By hand, with INPUT the folder node_modules:

    COMMAND
        python -m data_pipelines.run --pipeline=emoji --input=INPUT --output=runs/emoji/records
        python -m data_pipelines.run --pipeline=tokenizer --model_type=word \
            --input=runs/emoji/records/text --output=runs/emoji/tokenizer
        for stage in contrastive language_model flamingo; do
            python -m flamingo_jax.train --config=configs/emoji.py:$stage \
                --workdir=runs/emoji/$stage
        done
    EXPECTED
        `emoji_bind2` at 8 shots at least 0.60, rising with the shots, controls at chance;
        `emoji_name` at least 0.20 (chance is 0.01). The goal is 0.90 for `emoji_bind2`, and 0.70
        for `emoji_bind5` at 16 shots.
    MEASURED
        Not yet.

The arithmetic: there are 1,634 training concepts in two styles, less 341 drawings that are kept for
evaluation: 2,927 drawings, and 11,708 pictures of 32 x 32 pixels. The model is that of
configs/tiny.py with a language model of width 96, since there are 1,800 words and not 110.
"""

import dataclasses

from ml_collections import config_dict

from configs import tiny
from flamingo_jax.core.config import editable
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import NO_AUGMENTATION, DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models.config import Stage
from flamingo_jax.training.config import EvaluateEvery, HooksConfig, TowersConfig, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig

RUN = "runs/emoji"
STAGES = ("contrastive", "language_model", "flamingo")
NO_TOWERS = TowersConfig()

assert tiny.MODEL.lm
MODEL = dataclasses.replace(tiny.MODEL, lm=dataclasses.replace(tiny.MODEL.lm, width=96))


def get_config(stage: str = "flamingo") -> config_dict.ConfigDict:
    """Returns the config of one stage; the model is the same in all three.

    Args:
        stage: contrastive, language_model or flamingo.

    Raises:
        ValueError: for any other stage.
    """
    if stage not in STAGES:
        raise ValueError(
            f"configs/emoji.py has no stage {stage!r}; expected one of {STAGES}, as in "
            "--config=configs/emoji.py:flamingo"
        )
    make = {"contrastive": _contrastive, "language_model": _language_model, "flamingo": _flamingo}
    return editable(make[stage]())


def _contrastive() -> TrainConfig:
    """Returns the stage that trains the vision encoder.

    800 x 256 = 204,800 pictures, about 17 passes over the data.
    """
    # The longest caption has 8 words; with <BOS> and <EOS> 10 tokens.
    captions = DatasetConfig("captions", f"{RUN}/records/captions", batch_size=256, length=12)
    return _config(
        "contrastive",
        steps=800,
        datasets={"captions": captions},
        optimizer=_adam(learning_rate=3e-3, warmup_steps=50),
    )


def _language_model() -> TrainConfig:
    """Returns the stage that trains on text with look-ups: 1,500 x 32 x 96 = 4.6M tokens."""
    text = DatasetConfig(
        "text", f"{RUN}/records/text", batch_size=32, length=96, documents_per_row=1
    )
    return _config(
        "language_model",
        steps=1_500,
        datasets={"text": text},
        optimizer=_adam(learning_rate=3e-3, warmup_steps=50),
    )


def _flamingo() -> TrainConfig:
    """Returns the flamingo stage, with both towers frozen.

    1,500 x (24 pages of 8 pictures + 64 pairs) = 384,000 pictures.
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
        batch_size=64,
        length=16,
        weight=0.5,
        p_next=0.0,
        space_prefix=0.0,
    )
    return _config(
        "flamingo",
        steps=1_500,
        datasets={"pages": pages, "pairs": pairs},
        optimizer=_adam(learning_rate=3e-3, warmup_steps=30),
        towers=TowersConfig(lm=f"{RUN}/language_model/export", vision=f"{RUN}/contrastive/export"),
    )


def _config(
    stage: Stage,
    *,
    steps: int,
    datasets: dict[str, DatasetConfig],
    optimizer: OptimizerConfig,
    towers: TowersConfig = NO_TOWERS,
) -> TrainConfig:
    """Returns the config of a stage: the arguments, and all that the three stages share."""
    return TrainConfig(
        name=f"emoji_{stage}",
        stage=stage,
        seed=1,
        steps=steps,
        model=MODEL,
        data=DataConfig(
            f"{RUN}/tokenizer",
            image_size=32,
            datasets=datasets,
            augment=NO_AUGMENTATION,  # the pictures are composed with shifts, scales and rotations
        ),
        optimizer=optimizer,
        precision=Policy("float32"),  # CPUs compute bfloat16 in float32
        layers="unrolled",  # on a CPU a loop over layers costs more than it saves
        towers=towers,
        hooks=HooksConfig(log_every=10, save_every=100, keep=1),
        # To use it: --config.evaluate.every=100 --config.evaluate.tasks="('emoji_bind2',)".
        evaluate=EvaluateEvery(data={**DIRECTORIES, "emoji": f"{RUN}/records"}),
    )


def _adam(*, learning_rate: float, warmup_steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule="cosine",
        final_fraction=0.05,
        b2=0.98,
        weight_decay=0.01,
        clip_norm=1.0,
    )
