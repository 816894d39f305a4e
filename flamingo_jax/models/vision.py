"""One vision encoder or another, NFNet (the paper's) or ViT.

The only way in which other code sees them.

frames [M S S 3] uint8 --the encoder's own mean and deviation--> encoder --> features [M P E], row by row of its grid
"""

from __future__ import annotations

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flamingo_jax.core.notation import Array, Bool, Float, Float32, UInt8
from flamingo_jax.models import nfnet
from flamingo_jax.models.nfnet import NFNet, NFNetConfig
from flamingo_jax.models.vit import ViT, ViTConfig

VisionConfig: TypeAlias = NFNetConfig | ViTConfig


def encode_frames(
    config: VisionConfig,
    frames: UInt8[Array, "M S S 3"],
    dtype: DTypeLike,
    *,
    is_training: bool = False,
    rng: Array | None = None,
    name: str = "vision",
) -> Float[Array, "M P E"]:
    """Returns the features of each frame, from a Haiku module of this name within the current one.

    Args:
        config: of the encoder.
        frames: pixels, 0..255.
        dtype: what is computed in.
        is_training: whether NFNet's blocks are dropped (stochastic depth); a ViT has nothing
            random.
        rng: key for that.
        name: of the module.

    Raises:
        ValueError: if a ViT's patches do not fill the frames, or NFNet lacks a key.
    """
    if isinstance(config, ViTConfig):
        mean, std = (255 * np.array(value, np.float32) for value in (config.mean, config.std))
        return ViT(config, name=name)(nfnet.normalise(frames, dtype, mean=mean, std=std))
    grid = NFNet(config, name=name)(
        nfnet.normalise(frames, dtype), is_training=is_training, rng=rng
    )
    return grid.reshape(len(grid), -1, grid.shape[-1])


def mean_features(
    features: Float[Array, "M F P E"], frame_mask: Bool[Array, "M F"]
) -> Float32[Array, "M E"]:
    """Returns the mean over places, and over real frames.

    One vector for an image or a video, to compare it with others.
    """
    real = jnp.broadcast_to(frame_mask[:, :, None, None], features.shape)
    return jnp.mean(features, axis=(1, 2), where=real, dtype=jnp.float32)


def num_patches(config: VisionConfig, image_size: int) -> int:
    """Returns P, the features of a frame of this many pixels on a side (with a ViT's class token, where it is kept).

    Raises:
        ValueError: if a ViT's patches do not fill it.
    """
    if isinstance(config, ViTConfig):
        return config.num_features(image_size)
    return (-(-image_size // config.reduction)) ** 2


def example_size(config: VisionConfig) -> int:
    """Returns the side of a small image that the encoder takes, from which the shapes of its weights follow."""
    return config.image_size if isinstance(config, ViTConfig) else 32
