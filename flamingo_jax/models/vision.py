"""The vision encoder of a config, NFNet (the paper's) or ViT, as the rest of the code uses it.

    frames uint8 [M S S 3] --(pixel - mean) / deviation--> NFNet or ViT --> features [M P E]

The P features are the encoder's grid, row by row.
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
    """Returns the features of each frame.

    Args:
        config: of the encoder.
        frames: pixels, 0..255.
        dtype: of the computation.
        is_training: whether NFNet's blocks are dropped (stochastic depth); a ViT has nothing
            random.
        rng: key for stochastic depth.
        name: of the Haiku module, within the current one.

    Raises:
        ValueError: a ViT's patches do not fill the frames, or NFNet has no key.
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
    """Returns the mean over the grid and over real frames: one vector for an image or a video."""
    real = jnp.broadcast_to(frame_mask[:, :, None, None], features.shape)
    return jnp.mean(features, axis=(1, 2), where=real, dtype=jnp.float32)


def num_patches(config: VisionConfig, image_size: int) -> int:
    """Returns P, the number of features of a frame, with a ViT's class token if it is kept.

    Args:
        config: of the encoder.
        image_size: side of the frame, in pixels.

    Raises:
        ValueError: a ViT's patches do not fill the frame.
    """
    if isinstance(config, ViTConfig):
        return config.num_features(image_size)
    return (-(-image_size // config.reduction)) ** 2


def example_size(config: VisionConfig) -> int:
    """Returns the side of a small image, to initialise the encoder with."""
    return config.image_size if isinstance(config, ViTConfig) else 32
