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

Differs from the paper: the language model has a convolution of width 3 on q, k and v (Primer, So et
al. 2021). It takes the place of Chinchilla, and a model this small does not learn the look-up
within minutes without it.
"""

from ml_collections import config_dict

from flamingo_jax.core.config import editable
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import NO_AUGMENTATION, DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.models.config import ModelConfig, Stage
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.training.config import (
    EvaluateEvery,
    HooksConfig,
    TowersConfig,
    TrainConfig,
    UntilConfig,
)
from flamingo_jax.training.optimizer import OptimizerConfig

WORLD = "runs/demo/world"
STAGES = ("contrastive", "language_model", "flamingo")
NO_TOWERS = TowersConfig()

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


def get_config(stage: str = "flamingo") -> config_dict.ConfigDict:
    """Returns the config of one stage; the model is the same in all three.

    Args:
        stage: contrastive, language_model or flamingo.

    Raises:
        ValueError: for any other stage.
    """
    if stage not in STAGES:
        raise ValueError(
            f"configs/tiny.py has no stage {stage!r}; expected one of {STAGES}, as in "
            "--config=configs/tiny.py:flamingo"
        )
    make = {"contrastive": _contrastive, "language_model": _language_model, "flamingo": _flamingo}
    return editable(make[stage]())


def _contrastive() -> TrainConfig:
    """Returns the stage that trains the vision encoder on full captions.

    500 x 256 = 128,000 pictures, about 5 passes over the data.
    """
    # The longest caption, "a big red circle and a small blue ring", has 9 words; with <BOS> and
    # <EOS> 11 tokens.
    captions = DatasetConfig("captions", f"{WORLD}/captions", batch_size=256, length=12)
    return _config(
        "contrastive",
        steps=500,
        datasets={"captions": captions},
        optimizer=_adam(learning_rate=3e-3, warmup_steps=50),
    )


def _language_model() -> TrainConfig:
    """Returns the stage that trains on text with look-ups.

    The probe falls below its bound after about 600 of at most 1,000 updates: 600 x 32 x 96 = 1.8M
    tokens.
    """
    # A document of the world is about one row long.
    text = DatasetConfig("text", f"{WORLD}/text", batch_size=32, length=96, documents_per_row=1)
    return _config(
        "language_model",
        steps=1_000,
        datasets={"text": text},
        # The learning rate falls until update 800 and then stays at 5 % of the peak.
        optimizer=_adam(learning_rate=3e-3, warmup_steps=50, decay_steps=800),
        until=UntilConfig("lm_lookup", metric="nll", below=0.3, every=200),
    )


def _flamingo() -> TrainConfig:
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
        "flamingo",
        steps=700,
        datasets={"pages": pages, "pairs": pairs},
        # With 8e-3 (and 32 pairs, seed 1) the gradient norm jumped from 2 to 37, and the model
        # named nearly half of the shapes wrongly.
        optimizer=_adam(learning_rate=4e-3, warmup_steps=30),
        towers=TowersConfig(
            lm="runs/demo/language_model/export", vision="runs/demo/contrastive/export"
        ),
    )


def _config(
    stage: Stage,
    *,
    steps: int,
    datasets: dict[str, DatasetConfig],
    optimizer: OptimizerConfig,
    towers: TowersConfig = NO_TOWERS,
    until: UntilConfig | None = None,
) -> TrainConfig:
    """Returns the config of a stage: the arguments, and all that the three stages share."""
    return TrainConfig(
        name=f"tiny_{stage}",
        stage=stage,
        seed=1,
        steps=steps,
        model=MODEL,
        data=DataConfig(
            "runs/demo/tokenizer",
            image_size=32,
            datasets=datasets,
            augment=NO_AUGMENTATION,  # the texts are about colours, and about left and right
        ),
        optimizer=optimizer,
        precision=Policy("float32"),  # CPUs compute bfloat16 in float32
        layers="unrolled",  # on a CPU a loop over layers costs more than it saves
        towers=towers,
        hooks=HooksConfig(log_every=10, save_every=100, keep=1),
        until=until,
        # To use it: --config.evaluate.every=100 --config.evaluate.tasks="('format',)", and in the
        # contrastive stage --config.evaluate.tasks="('world_retrieval',)".
        evaluate=EvaluateEvery(data={**DIRECTORIES, "world": WORLD}),
    )


def _adam(
    *, learning_rate: float, warmup_steps: int, decay_steps: int | None = None
) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule="cosine",
        decay_steps=decay_steps,
        final_fraction=0.05,
        b2=0.98,
        weight_decay=0.01,
        clip_norm=1.0,
    )
