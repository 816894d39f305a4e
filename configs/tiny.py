"""A Flamingo that learns to learn from a few examples, in minutes on a laptop's CPU, in a synthetic world of coloured shapes.

launch/demo.sh runs all of it. By hand, from the repository root:

    COMMAND  python -m data_pipelines.run --pipeline=world --output=runs/demo/world
             python -m data_pipelines.run --pipeline=tokenizer --model_type=word --input=runs/demo/world/text --output=runs/demo/tokenizer
             python -m flamingo_jax.train --config=configs/tiny.py:contrastive    --workdir=runs/demo/contrastive
             python -m flamingo_jax.train --config=configs/tiny.py:language_model --workdir=runs/demo/language_model
             python -m flamingo_jax.train --config=configs/tiny.py:flamingo       --workdir=runs/demo/flamingo
    EXPECTED language_model: the look-up probe's NLL falls below 0.3 (else the stage fails: without look-up in text there is
             no binding in pictures). flamingo: `format` exact match at most 0.45 at 0 shots, at least 0.90 from 1 shot on;
             `bind2` at least 0.70 at 4 shots, 0.75 at 8.
    MEASURED seeds 1, 2 (2 CPU cores, n = 400, README): 118, 149, 187 s for the three stages; `format` 0.26, 0.30 at 0 shots,
             1.00, 1.00 at 1; `bind2` 0.82, 0.72 at 4 shots, 0.85, 0.77 at 8.

Not in the paper: the width-3 convolution on q, k and v of the language model (Primer, So et al. 2021). The language model is
a stand-in for Chinchilla, and one this small does not form the look-up within minutes without it.
"""

from ml_collections import config_dict

from configs import base

WORLD = "runs/demo/world"
STAGES = ("contrastive", "language_model", "flamingo")


def get_config(stage: str = "flamingo") -> config_dict.ConfigDict:
    """Returns the config of one stage; the model is the same in all three.

    Args:
        stage: contrastive, language_model or flamingo.

    Raises:
        ValueError: for any other stage.
    """
    if stage not in STAGES:
        raise ValueError(
            f"configs/tiny.py has no stage {stage!r}; expected one of {STAGES}, as in --config=configs/tiny.py:flamingo"
        )
    config = base.get_config()
    config.name = f"tiny_{stage}"
    config.stage = stage
    config.seed = 1
    config.precision.compute = "float32"  # CPUs compute bf16 by way of float32
    config.data.tokenizer = "runs/demo/tokenizer"
    config.data.image_size = 32
    # Colours, and what is left or right, are what the texts of this world are about.
    config.data.augment.update(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    # With --config.evaluate.every=100 --config.evaluate.tasks="('format',)"; contrastive: "('world_retrieval',)".
    config.evaluate.data.world = WORLD
    config.hooks.log_every = 10
    config.hooks.save_every = 100
    config.hooks.keep = 1
    _set_model(config.model)
    config.optimizer.update(schedule="cosine", final_fraction=0.05, b2=0.98, weight_decay=0.01, clip_norm=1.0)
    {"contrastive": _contrastive, "language_model": _language_model, "flamingo": _flamingo}[stage](config)
    return config


def _contrastive(config: config_dict.ConfigDict) -> None:
    """The vision encoder learns what full captions say: 500 x 256 = 128,000 pictures, about 5 passes over the pool."""
    config.steps = 500
    config.optimizer.update(learning_rate=3e-3, warmup_steps=50)
    # Longest caption: "a big red circle and a small blue ring" = 9 words, <BOS> and <EOS>: 11 tokens.
    config.data.datasets = {"captions": base.dataset("captions", f"{WORLD}/captions", batch_size=256, length=12)}


def _language_model(config: config_dict.ConfigDict) -> None:
    """Text with look-ups to copy: 600 x 32 x 96 = 1.8 M tokens, or up to two thirds more until the probe is content."""
    config.steps = 1_000
    # The fall would end at 800; what follows runs on at its end, 5 %.
    config.optimizer.update(learning_rate=3e-3, warmup_steps=50, decay_steps=800)
    # A document of the world is about one row long.
    config.data.datasets = {
        "text": base.dataset("text", f"{WORLD}/text", batch_size=32, length=96, documents_per_row=1)
    }
    config.until = base.until("lm_lookup", metric="nll", below=0.3, every=200)


def _flamingo(config: config_dict.ConfigDict) -> None:
    """Both towers frozen; 700 x (24 pages of 8 pictures + 64 pairs), that is 179,200 pictures through the encoder."""
    config.steps = 700
    # At 8e-3 (and 32 pairs, seed 1) the gradient norm jumped from 2 to 37, and nearly half of the shapes were named wrongly.
    config.optimizer.update(learning_rate=4e-3, warmup_steps=30)
    config.towers.lm = "runs/demo/language_model/export"
    config.towers.vision = "runs/demo/contrastive/export"
    # A page: 8 x "<image> this is a dax <EOC>" = 8 x 6 = 48 tokens, <BOS>, <EOC>, <EOS>; with questions 4 x 13 + 3 = 55.
    pages = base.dataset(
        "interleaved", f"{WORLD}/pages", batch_size=24, length=56, max_images=8, weight=1.0, p_next=0.0
    )
    # A pair: <BOS> <image> + 9 words + <EOC> <EOS> = 13 tokens. Every word of the world is one piece, with its space.
    pairs = base.dataset("pairs", f"{WORLD}/pairs", batch_size=64, length=16, weight=0.5, p_next=0.0, space_prefix=0.0)
    config.data.datasets = {"pages": pages, "pairs": pairs}


def _set_model(model: config_dict.ConfigDict) -> None:
    """32 x 32 pixels -> stem 16 x 16 x 24, 8 x 8 x 48 -> stages 8 x 8 x 48, 4 x 4 x 96 -> 4 latents of 64 -> a language model of 4 x 64."""
    model.vision.update(
        stem_channels=(24, 48),
        stem_strides=(2, 2),
        widths=(48, 96),
        depths=(1, 1),
        strides=(1, 2),
        expansion=1.0,
        se_ratio=None,
        skip_init=1.0,  # so few steps do not open a branch that starts shut
        final_multiplier=None,
        loop="unrolled",
    )
    # Captions of equal scenes are equal: they are no negatives of each other.
    model.text_encoder.update(num_layers=1, width=64, num_heads=4, max_length=16)
    model.contrastive.update(joint_dim=64, initial_temperature=10.0, label_smoothing=0.0, duplicates="positives")
    model.lm.update(
        num_layers=4,
        width=64,
        num_heads=4,
        norm="layer",
        position="rotary",
        rotary_base=500.0,  # rows are 96 tokens long
        mlp_bias=False,
        qkv_conv_width=3,
        remat="none",
    )
    model.resampler.update(num_layers=1, width=64, num_heads=4, head_dim=16, num_latents=4)
    model.xattn.update(every=1)
    # In this vocabulary <image> is one piece, which the language model never saw.
    model.new_tokens = ("<EOC>", "<image>")
