r"""A tiny Flamingo that learns to learn from a few examples, in minutes on a laptop's CPU.

Its world is synthetic: pictures of coloured shapes, and texts about them. launch/demo.sh runs all
of it. By hand, from the repository root:

    COMMAND
        python -m data_pipelines.run --pipeline=world --output=runs/demo/world
        python -m data_pipelines.run --pipeline=tokenizer --model_type=word \
            --input=runs/demo/world/text --output=runs/demo/tokenizer
        for stage in contrastive language_model flamingo; do
            python -m flamingo_jax.train --config=configs/tiny.py:$stage --workdir=runs/demo/$stage
        done
    EXPECTED
        language_model: the NLL of the look-up probe falls below 0.3; otherwise the stage fails,
        since a model that cannot look up in text cannot do it in pictures. flamingo: `format` exact
        match at most 0.45 at 0 shots, at least 0.90 from 1 shot on; `bind2` at least 0.70 at 4
        shots, 0.75 at 8.
    MEASURED
        Seeds 1, 2 (2 CPU cores, n = 400): `format` 0.30, 0.30 at 0 shots, 1.00, 1.00 at 1; `bind2`
        0.82, 0.72 at 4 shots, 0.88, 0.77 at 8. launch/README.md has all numbers and the seconds.

The argument is a stage, or SIZE,STAGE: `small` and `large` have another language model, for
launch/model_sizes.sh; `gpu` is a larger model with more data, for ten minutes of one GPU:

    COMMAND
        launch/demo.sh --size=gpu; by hand as above, with --size=gpu --page_mix=0.5,0.15,0.35 for
        the world, and --config=configs/tiny.py:gpu,$stage
    EXPECTED
        `bind2` at least 0.95 at 4 shots, 0.97 at 8, and at 32 no worse than at 8; `questions` at
        least 0.80; `bind2_held_out` at least 0.85 at 8 shots.
    MEASURED
        Not yet, and on no GPU. On a CPU the first two stages ran, with 3 updates; the flamingo
        stage was built and read its data.

Differs from the paper: the language model has a convolution of width 3 on q, k and v (Primer, So et
al. 2021). It takes the place of Chinchilla, and a model this small does not learn the look-up
within minutes without it.
"""

import dataclasses
import functools

from ml_collections import config_dict

from configs import small_models
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models import sizes
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.training.config import TowersConfig, TrainConfig, UntilConfig

WORLD = "runs/demo/world"
STAGES = ("contrastive", "language_model", "flamingo")

# 32 x 32 pixels -> stem 16 x 16 x 24, 8 x 8 x 48 -> stages 8 x 8 x 48, 4 x 4 x 96 -> 4 latents of
# width 64 -> a language model of 4 blocks of width 64.
MODEL = ModelConfig(
    vision=sizes.NFNETS["tiny"],
    text_encoder=TextEncoderConfig(
        vocab_size=0, num_layers=1, width=64, num_heads=4, max_length=16
    ),
    # Equal scenes have equal captions, which must not be negatives of each other.
    contrastive=ContrastiveConfig(
        joint_dim=64, initial_temperature=10.0, label_smoothing=0.0, duplicates="positives"
    ),
    lm=LMConfig(
        vocab_size=0,
        num_layers=4,
        width=64,
        num_heads=4,
        norm="layer",
        position="rotary",
        rotary_base=500.0,  # small, since rows are only 96 tokens long
        mlp_bias=False,
        qkv_conv_width=3,
    ),
    resampler=sizes.RESAMPLERS["tiny"],
    xattn=XattnConfig(every=1),
    # Here <image> is one token, which the language model was not trained on.
    new_tokens=("<EOC>", "<image>"),
)

# As in the paper, the sizes have one vision encoder and one resampler, and differ in the language
# model and the layers between its blocks. Its blocks have 55,000, 197,000 and 664,000 weights in
# matrices (12 * num_layers * width ** 2).
assert MODEL.lm and MODEL.contrastive
SMALL = dataclasses.replace(MODEL, lm=dataclasses.replace(MODEL.lm, num_layers=2, width=48))
LARGE = dataclasses.replace(MODEL, lm=dataclasses.replace(MODEL.lm, num_layers=6, width=96))

# 32 x 32 pixels -> stem 16 x 16 x 32, 8 x 8 x 64 -> stages 8 x 8 x 128, 4 x 4 x 256 -> 16 latents
# of width 256 -> a language model of 6 blocks of width 256.
GPU_MODEL = dataclasses.replace(
    MODEL,
    vision=dataclasses.replace(
        sizes.NFNETS["tiny"],
        stem_channels=(32, 64),
        widths=(128, 256),
        depths=(2, 2),
        group_width=256,  # one group
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=0, num_layers=2, width=256, num_heads=8, max_length=16
    ),
    contrastive=dataclasses.replace(MODEL.contrastive, joint_dim=256),
    lm=dataclasses.replace(MODEL.lm, num_layers=6, width=256, num_heads=8, rotary_base=2_000.0),
    resampler=ResamplerConfig(num_layers=2, width=256, num_heads=8, head_dim=32, num_latents=16),
)
MODELS = {"base": MODEL, "small": SMALL, "large": LARGE, "gpu": GPU_MODEL}

# {stage: {field: its value}} of `gpu`, where the others have another; all unmeasured. By the counts
# of planning/flops.py the updates need 6.5e14 + 1.3e15 + 1.1e15 = 3.1e15 FLOP. At 3 % of their
# peaks, which is little, that is 100 s of an H200 and 330 s of an A100; at 8e10 FLOP/s of two CPU
# cores, 11 hours. One thread that reads needs 160, 45 and 200 s (a core of an AMD EPYC under other
# load: 0.13 ms for a picture that is kept decoded, 0.36 ms for one that is not, 2.4 ms for a page).
# The 14.5M weights and the activations of an update fit in 8 GB.
GPU = {
    # 2,000 x 512 = 1.02M pictures, 10 passes over 98,304.
    "contrastive": {
        "steps": 2_000,
        "data.datasets.captions.batch_size": 512,
        "optimizer.learning_rate": 1.5e-3,
        "optimizer.warmup_steps": 100,
    },
    # At most 3,000 x 64 x 224 = 43M tokens, 1.5 passes over 131,072 documents of up to 222 words.
    "language_model": {
        "steps": 3_000,
        "data.datasets.text.batch_size": 64,
        "data.datasets.text.length": 224,
        "optimizer.learning_rate": 1e-3,
        "optimizer.warmup_steps": 100,
        "optimizer.decay_steps": 2_500,
        "until.every": 250,
    },
    # A page has up to 33 pictures, so that 32 examples and a query are no longer than what is
    # learnt: 33 x 6 + 2 = 200 tokens. With questions it has up to 16: 16 x 13 + 2 = 210. On average
    # it has 17: 2,000 x (32 x 17 + 128) = 1.34M pictures.
    "flamingo": {
        "steps": 2_000,
        "data.datasets.pages.batch_size": 32,
        "data.datasets.pages.length": 216,
        "data.datasets.pages.max_images": 33,
        "data.datasets.pairs.batch_size": 128,
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 100,
    },
}

_config = functools.partial(
    small_models.train_config, tokenizer="runs/demo/tokenizer", benchmarks={"world": WORLD}
)


def get_config(argument: str = "flamingo") -> config_dict.ConfigDict:
    """Returns the config of one stage; all stages of a size have the same model.

    Args:
        argument: STAGE: contrastive, language_model or flamingo; or SIZE,STAGE or SIZE, with small,
            base, large or gpu.

    Raises:
        ValueError: there is no such stage or size.
    """
    size, stage = small_models.size_and_stage(
        argument, config="tiny", sizes=tuple(MODELS), stages=STAGES
    )
    make = {"contrastive": _contrastive, "language_model": _language_model, "flamingo": _flamingo}
    config = editable(make[stage](MODELS[size]))
    if size != "base":
        config.name = f"{config.name}_{size}"
    if size == "gpu":
        config.update_from_flattened_dict(small_models.ON_A_GPU | GPU[stage])
    if size == "small" and stage == "language_model":
        # A model this small may not learn to look up. Then it binds no words, as the report shows.
        config.until.required = False
    return config


def _contrastive(model: ModelConfig) -> TrainConfig:
    """Returns the stage that trains the vision encoder on full captions.

    500 x 256 = 128,000 pictures, about 5 passes over the data.
    """
    # The longest caption, "a big red circle and a small blue ring", has 9 words; with <BOS> and
    # <EOS> 11 tokens.
    captions = DatasetConfig("captions", f"{WORLD}/captions", batch_size=256, length=12)
    return _config(
        "tiny_contrastive",
        "contrastive",
        model=model,
        steps=500,
        datasets={"captions": captions},
        optimizer=small_models.adam(learning_rate=3e-3, warmup_steps=50),
    )


def _language_model(model: ModelConfig) -> TrainConfig:
    """Returns the stage that trains on text with look-ups.

    The probe falls below its bound after about 600 of at most 1,000 updates: 600 x 32 x 96 = 1.8M
    tokens.
    """
    # A document of the world is about one row long.
    text = DatasetConfig("text", f"{WORLD}/text", batch_size=32, length=96, documents_per_row=1)
    return _config(
        "tiny_language_model",
        "language_model",
        model=model,
        steps=1_000,
        datasets={"text": text},
        # The learning rate falls until update 800 and then stays at 5 % of the peak.
        optimizer=small_models.adam(learning_rate=3e-3, warmup_steps=50, decay_steps=800),
        until=UntilConfig("lm_lookup", metric="nll", below=0.3, every=200),
    )


def _flamingo(model: ModelConfig) -> TrainConfig:
    """Returns the flamingo stage, with both towers frozen.

    700 x (24 pages of 8 pictures + 64 pairs) = 179,200 pictures.
    """
    # A page is 8 x "<image> this is a dax <EOC>" = 8 x 6 = 48 tokens, with <BOS> and <EOS> 50.
    # A page with questions is 4 x 13 + 2 = 54 tokens.
    pages = DatasetConfig(
        "interleaved",
        f"{WORLD}/pages",
        batch_size=24,
        length=56,
        max_images=8,
        weight=1.0,
        p_next=0.0,
    )
    # A pair is <BOS>, <image>, 9 words, <EOC> and <EOS> = 13 tokens. Every word of the world is
    # one piece, together with its space.
    pairs = DatasetConfig(
        "pairs",
        f"{WORLD}/pairs",
        batch_size=64,
        length=16,
        weight=0.5,
        p_next=0.0,
        space_prefix=0.0,
    )
    return _config(
        "tiny_flamingo",
        "flamingo",
        model=model,
        steps=700,
        datasets={"pages": pages, "pairs": pairs},
        # With 8e-3 (and 32 pairs, seed 1) the gradient norm jumped from 2 to 37, and the model
        # named nearly half of the shapes wrongly.
        optimizer=small_models.adam(learning_rate=4e-3, warmup_steps=30),
        towers=TowersConfig(
            lm="runs/demo/language_model/export", vision="runs/demo/contrastive/export"
        ),
    )
