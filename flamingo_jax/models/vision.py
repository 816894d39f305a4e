"""The vision encoder of a config, NFNet (the paper's) or ViT, as the rest of the code uses it.

    frames uint8 [M F S S 3] --(pixel - mean) / deviation--> NFNet or ViT --> features [M F P E]

The P features of a frame are the encoder's grid, row by row. The frames of a video are encoded one
by one. A tiled ViT encodes the frames of a visual input together: they are the tiles of one image.
"""

from __future__ import annotations

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int, UInt8
from flamingo_jax.models import nfnet
from flamingo_jax.models.nfnet import NFNet, NFNetConfig
from flamingo_jax.models.tiled_vit import TiledViT, TiledViTConfig
from flamingo_jax.models.vit import ViT, ViTConfig

VisionConfig: TypeAlias = NFNetConfig | ViTConfig | TiledViTConfig

FrameMask: TypeAlias = Bool[Array, "M F"] | Int[Array, "M F"]
"""Which frames of each visual input are real.

Of tiles it is no bool but an integer: 0 where an image has no tile, and on each of its tiles the
number of the image's arrangement (`data.images.tiles.arrangements`), from 1.
"""


def encode_visuals(
    config: VisionConfig,
    frames: UInt8[Array, "M F S S 3"],
    frame_mask: FrameMask,
    dtype: DTypeLike,
    *,
    is_training: bool = False,
    rng: Array | None = None,
    name: str = "vision",
) -> Float[Array, "M F P E"]:
    """Returns the features of images and videos.

    Frames, or the images of a tiled ViT, are spread over all chips of the mesh.

    Args:
        config: of the encoder.
        frames: pixels, 0..255.
        frame_mask: see `FrameMask`; only a tiled ViT reads it.
        dtype: of the computation.
        is_training: as for `encode_frames`, like the rest.
        rng: key.
        name: of the Haiku module.

    Raises:
        ValueError: frames of a size, or of a number, that the encoder does not take.
    """
    if isinstance(config, TiledViTConfig):
        frames = constrain(frames, "images", None, None, None, None)
        tiles = nfnet.normalise(frames, dtype, **_colours(config))
        seen = TiledViT(config, name=name)(tiles, frame_mask.astype(jnp.int32))
        return constrain(seen, "images", None, None, None)
    images = constrain(frames.reshape(-1, *frames.shape[2:]), "images", None, None, None)
    seen = encode_frames(config, images, dtype, is_training=is_training, rng=rng, name=name)
    seen = constrain(seen, "images", None, None)
    seen = seen.reshape(*frames.shape[:2], *seen.shape[1:])
    return constrain(seen, "images", None, None, None)


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
        config: of the encoder; a tiled ViT sees no frame alone.
        frames: pixels, 0..255.
        dtype: of the computation.
        is_training: whether NFNet's blocks are dropped (stochastic depth); a ViT has nothing
            random.
        rng: key for stochastic depth.
        name: of the Haiku module, within the current one.

    Raises:
        ValueError: a ViT's patches do not fill the frames, NFNet has no key, or the encoder is a
            tiled ViT.
    """
    if isinstance(config, TiledViTConfig):
        raise ValueError(
            "A tiled ViT sees the tiles of an image together: expected encode_visuals."
        )
    if isinstance(config, ViTConfig):
        return ViT(config, name=name)(nfnet.normalise(frames, dtype, **_colours(config)))
    grid = NFNet(config, name=name)(
        nfnet.normalise(frames, dtype), is_training=is_training, rng=rng
    )
    return grid.reshape(len(grid), -1, grid.shape[-1])


def _colours(config: ViTConfig | TiledViTConfig) -> dict[str, np.ndarray]:
    """Returns the mean and the deviation of pixels 0..255."""
    both = {"mean": config.mean, "std": config.std}
    return {name: 255 * np.array(value, np.float32) for name, value in both.items()}


def mean_features(
    features: Float[Array, "M F P E"], frame_mask: FrameMask
) -> Float32[Array, "M E"]:
    """Returns the mean over the grid and over real frames: one vector for an image or a video."""
    real = jnp.broadcast_to((frame_mask != 0)[:, :, None, None], features.shape)
    return jnp.mean(features, axis=(1, 2), where=real, dtype=jnp.float32)


def num_patches(config: VisionConfig, image_size: int) -> int:
    """Returns P, the number of features of a frame, with a ViT's class token if it is kept.

    Args:
        config: of the encoder.
        image_size: side of the frame, in pixels.

    Raises:
        ValueError: a ViT's patches do not fill the frame, or a tiled ViT has tiles of another size.
    """
    if isinstance(config, NFNetConfig):
        return (-(-image_size // config.reduction)) ** 2
    return config.num_features(image_size)


def output_width(config: VisionConfig) -> int:
    """Returns E, the width of the features."""
    return config.output_width if isinstance(config, TiledViTConfig) else config.width


def tiles_of(config: VisionConfig) -> int:
    """Returns the most tiles that an image is cut into; 0 = it is one frame, and never cut."""
    return config.max_tiles if isinstance(config, TiledViTConfig) else 0


def example_shape(config: VisionConfig) -> tuple[int, int, int, int]:
    """Returns (F, S, S, 3) of a small image, to initialise the encoder with."""
    size = 32 if isinstance(config, NFNetConfig) else config.image_size
    return max(tiles_of(config), 1), size, size, 3
