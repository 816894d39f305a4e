"""The named sizes of all parts: tables for configs and tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.models.text_encoder import TextEncoderConfig
from flamingo_jax.models.tiled_vit import TiledViTConfig
from flamingo_jax.models.vit import ViTConfig

# NFNet F0-F6 (Brock et al. 2021, Table 1): variant n has n + 1 times the depth of F0; F6 is
# Flamingo's. Weights without the classifier's 3,073,000: 68.4M, 129.6M, 190.7M, 251.9M, 313.0M,
# 374.1M, 435.3M. "tiny" takes 32x32 pixels: 16x16x24 and 8x8x48 in the stem, one block at 8x8x48,
# one at 4x4x96. Its residual branches start at alpha = 0.2 and not at 0, since it trains for
# hundreds of steps only.
NFNETS: Mapping[str, NFNetConfig] = {
    "F0": NFNetConfig(depths=(1, 2, 6, 3)),
    "F1": NFNetConfig(depths=(2, 4, 12, 6)),
    "F2": NFNetConfig(depths=(3, 6, 18, 9)),
    "F3": NFNetConfig(depths=(4, 8, 24, 12)),
    "F4": NFNetConfig(depths=(5, 10, 30, 15)),
    "F5": NFNetConfig(depths=(6, 12, 36, 18)),
    "F6": NFNetConfig(depths=(7, 14, 42, 21)),
    "tiny": NFNetConfig(
        stem_channels=(24, 48),
        stem_strides=(2, 2),
        widths=(48, 96),
        depths=(1, 1),
        strides=(1, 2),
        expansion=1.0,
        se_ratio=None,
        final_multiplier=None,
        skip_init=1.0,
        loop="unrolled",
    ),
}

# CLIP's towers (Radford et al. 2021; OpenCLIP), without the projection into the joint space:
# OpenAI's ViT-L/14, 303.2M weights with the final norm, and LAION's ViT-H/14, 630.8M. "tiny" has
# 4 x 4 patches of 8 pixels.
VITS: Mapping[str, ViTConfig] = {
    "L14": ViTConfig(patch_size=14, width=1024, num_layers=24, num_heads=16, mlp_width=4096),
    "H14": ViTConfig(
        patch_size=14,
        width=1280,
        num_layers=32,
        num_heads=16,
        mlp_width=5120,
        activation="gelu_exact",
    ),
    "tiny": ViTConfig(
        patch_size=8, width=32, num_layers=2, num_heads=4, mlp_width=64, image_size=32
    ),
}

# Llama 3.2 Vision's: 863.6M weights in the instruct models. The base models have the same layers
# and tiles of 448 pixels. "tiny" has tiles of 2 x 2 patches of 8 pixels.
TILED_VITS: Mapping[str, TiledViTConfig] = {
    "llama": TiledViTConfig(),
    "tiny": TiledViTConfig(
        patch_size=8,
        width=32,
        num_layers=3,
        num_global_layers=2,
        num_heads=4,
        mlp_width=64,
        image_size=16,
        kept=(0, 1),
    ),
}

# The paper's (Table 4), in the two readings of its head size (models/resampler.py): 193.7M and
# 174.8M weights.
RESAMPLERS: Mapping[str, ResamplerConfig] = {
    "paper": ResamplerConfig(num_layers=6, width=1536, num_heads=16, head_dim=128, num_latents=64),
    "paper_v2_head96": ResamplerConfig(
        num_layers=6, width=1536, num_heads=16, head_dim=96, num_latents=64
    ),
    "tiny": ResamplerConfig(num_layers=1, width=64, num_heads=4, head_dim=16, num_latents=4),
}

# BERT (Devlin et al. 2019; mini: Turc et al. 2019) with its vocabulary of 30,522. The paper does
# not say which size its encoder has; its small ablation used mini.
TEXT_ENCODERS: Mapping[str, TextEncoderConfig] = {
    "bert_base": TextEncoderConfig(
        vocab_size=30_522, num_layers=12, width=768, num_heads=12, max_length=512, token_types=2
    ),
    "bert_mini": TextEncoderConfig(
        vocab_size=30_522, num_layers=4, width=256, num_heads=4, max_length=512, token_types=2
    ),
    "tiny": TextEncoderConfig(vocab_size=128, num_layers=1, width=64, num_heads=4, max_length=32),
}

# Chinchilla-style language models. The paper calls its 1.4B and 7.1B "from Chinchilla", but
# Chinchilla's table has neither shape. The counts of Table 5 confirm them: 1.375B,
# 7.112B and 70.06B weights. "7.1B_table4" has the 40 layers that Table 4 gives for Flamingo-9B; it
# has 8.86B weights, which contradicts Table 5.
LMS: Mapping[str, LMConfig] = {
    "1.4B": LMConfig(vocab_size=32_000, num_layers=24, width=2048, num_heads=16),
    "7.1B": LMConfig(vocab_size=32_000, num_layers=32, width=4096, num_heads=32),
    "7.1B_table4": LMConfig(vocab_size=32_000, num_layers=40, width=4096, num_heads=32),
    "70B": LMConfig(vocab_size=32_000, num_layers=80, width=8192, num_heads=64),
}

# Table 5. A cross-attention layer before every block, every 4th, every 7th. "9B_table4" has the 40
# blocks and 10 layers of Table 4: 8.86B + 2.01B, not the 7.1B + 1.6B of Table 5.
FLAMINGOS: Mapping[str, FlamingoConfig] = {
    "3B": FlamingoConfig(NFNETS["F6"], RESAMPLERS["paper"], LMS["1.4B"], XattnConfig(every=1)),
    "9B": FlamingoConfig(NFNETS["F6"], RESAMPLERS["paper"], LMS["7.1B"], XattnConfig(every=4)),
    "9B_table4": FlamingoConfig(
        NFNETS["F6"], RESAMPLERS["paper"], LMS["7.1B_table4"], XattnConfig(every=4)
    ),
    "80B": FlamingoConfig(NFNETS["F6"], RESAMPLERS["paper"], LMS["70B"], XattnConfig(every=7)),
}


def trained(name: str) -> LMConfig:
    """Returns one of `LMS` for training: all but the matrix products is recomputed."""
    return dataclasses.replace(LMS[name], remat="projections")


# The parts of Flamingo-80B and of the stages that train its towers; vocabulary sizes are the
# tokenizer's. The text encoder is BERT-mini, as in the ablation (paper, B.3.2): the size of the
# final one is not stated.
PARTS = ModelConfig(
    vision=NFNETS["F6"],
    text_encoder=dataclasses.replace(
        TEXT_ENCODERS["bert_mini"], vocab_size=0, max_length=32, token_types=0
    ),
    contrastive=ContrastiveConfig(),
    lm=dataclasses.replace(trained("70B"), vocab_size=0),
    resampler=RESAMPLERS["paper"],
    xattn=FLAMINGOS["80B"].xattn,
)
FLAMINGO_3B = dataclasses.replace(PARTS, lm=trained("1.4B"), xattn=FLAMINGOS["3B"].xattn)
FLAMINGO_9B = dataclasses.replace(PARTS, lm=trained("7.1B"), xattn=FLAMINGOS["9B"].xattn)
FLAMINGO_80B = dataclasses.replace(PARTS, lm=trained("70B"))
