"""A small model that does everything.

One-word tokens, 16 x 16 images, two layers, open gates, and large weights, so that answers differ.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core.trees import flatten, unflatten
from flamingo_jax.inference.model import Flamingo, InferenceConfig
from flamingo_jax.models import api, flamingo
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece

IMAGE_SIZE = 16
WORDS = "a and big small red green blue circle square this is output : question answer dax wug"
CONFIG = InferenceConfig(
    lengths=(32,), num_images=(4,), images_per_pass=8, max_new_tokens=5
)  # one shape: one program to compile


@functools.cache
def tokenizer(directory):
    path = f"{directory}/tokenizer.model"
    train_sentencepiece([WORDS] * 3, path, 64, model_type="word")
    return SentencePieceTokenizer.load(path, ("<EOC>", "<image>"))


def lm_config(vocab_size: int) -> LMConfig:
    return LMConfig(
        vocab_size=vocab_size,
        num_layers=2,
        width=16,
        num_heads=2,
        position="rotary",
        qkv_conv_width=3,
        tied_head=False,  # a tied one would repeat its last token
        vocab_multiple=8,
    )


def flamingo_config(vocab_size: int) -> flamingo.FlamingoConfig:
    return flamingo.FlamingoConfig(
        vision=NFNetConfig(
            stem_channels=(8,),
            stem_strides=(2,),
            widths=(8,),
            depths=(1,),
            strides=(2,),
            group_width=8,
            se_ratio=None,
            final_multiplier=None,
        ),
        resampler=ResamplerConfig(num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=2),
        lm=lm_config(vocab_size),
        xattn=XattnConfig(),
        new_tokens=("<EOC>", "<image>"),
    )


def weights(shapes):
    """Random weights with open gates, so large that answers differ with the prompt.

    Drawn by numpy: there is no program to compile.
    """
    rng = np.random.default_rng(2)

    def leaf(path, x):
        if path.endswith("_gate"):
            return jnp.full(x.shape, 0.8 if "attention" in path else 0.1)
        if path.endswith(("scale", "gain")):
            return jnp.ones(x.shape)
        if path.endswith(("/embedding", "new_tokens/input")):
            return jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        if path.endswith(("/head", "new_tokens/output")):
            return jnp.asarray(0.7 * rng.normal(size=x.shape), jnp.float32)
        if x.ndim < 2 or path.endswith(("/b", "bias", "offset")):
            return jnp.zeros(x.shape)
        return jnp.asarray(
            2.0 * rng.normal(size=x.shape) * (np.prod(x.shape) // x.shape[-1]) ** -0.5, jnp.float32
        )

    return unflatten({path: leaf(path, x) for path, x in flatten(shapes).items()})


@functools.cache
def parts(vocab_size: int, kind: str = "flamingo"):
    """(pure functions, weights)."""
    model = (
        api.flamingo(flamingo_config(vocab_size))
        if kind == "flamingo"
        else api.language_model(lm_config(vocab_size))
    )
    return model, weights(jax.eval_shape(model.init, jax.random.key(0)))


def load(directory, kind: str = "flamingo", **settings) -> Flamingo:
    words = tokenizer(directory)
    model, params = parts(words.vocab_size, kind)
    settings.setdefault("config", CONFIG)
    return Flamingo(
        model,
        params,
        words,
        image_size=IMAGE_SIZE if kind == "flamingo" else None,
        checkpoint="tiny",
        step=7,
        **settings,
    )


def image(seed: int, size: int = IMAGE_SIZE) -> np.ndarray:
    """Four quarters of different colours; the encoder could not distinguish images of noise."""
    quarters = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    return quarters.repeat(size // 2, axis=0).repeat(size // 2, axis=1)
