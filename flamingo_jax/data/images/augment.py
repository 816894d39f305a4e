"""Flips training images left to right and changes their colours, at random, on the device.

The paper describes both in B.1.2, and in B.1.3 for the contrastive stage. It gives no numbers for
them; ours are in `AugmentConfig`.

    frames uint8[M, F, H, W, 3] --flip--> --3 x 3 matrix + offset--> uint8[M, F, H, W, 3]

Flip, matrix and offset are drawn for each visual input m from media_key[m]. All frames of a clip
are changed in the same way. The result depends only on the pixels and the key of a visual input,
not on the batch, the place in the batch, or the number of devices.

Saturation and hue scale and turn the colour (chroma) and keep the brightness (luma). So all changes
together are one affine map of (R, G, B): nine multiplications per pixel, no tables, no gathers.
dm-pix changes colours in HSV instead: up to 70 of 255 apart at our ranges, and 8 times slower on a
CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from flamingo_jax.data.config import NO_AUGMENTATION, AugmentConfig
from flamingo_jax.data.images.read import MEAN_COLOUR

# RGB to luma and two orthogonal axes of colour (YIQ, the colour space of NTSC).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_QUARTER_TURN = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]])
_LUMA = np.tile(_YIQ[0], (3, 1))  # projects a colour to the grey of the same luma
_CHROMA = np.eye(3) - _LUMA
_TURNED = np.linalg.inv(_YIQ) @ _QUARTER_TURN @ _YIQ  # the chroma, turned by a quarter


def augment(
    frames: UInt8[Array, "M F H W 3"], media_key: UInt32[Array, "M 2"] | None, config: AugmentConfig
) -> UInt8[Array, "M F H W 3"]:
    """Flips visual inputs and changes their colours.

    Args:
        frames: uint8[M, F, H, W, 3] the pool of a batch.
        media_key: uint32[M, 2] of the batch; each row is a threefry key. May be None if `config`
            is all zeros.
        config: probability and ranges. If all are 0, `frames` are returned unchanged.

    Returns:
        uint8[M, F, H, W, 3]. Padding (rows and columns that have the mean colour everywhere) keeps
        its colour.

    Raises:
        ValueError: the batch has no keys, and `config` is not all zeros.
    """
    if config == NO_AUGMENTATION or not len(frames):
        return frames
    if media_key is None:
        raise ValueError(
            "The batch has no media_key, so its images cannot be augmented: make it "
            "with data.mixture."
        )
    draws = jax.vmap(
        lambda key: jax.random.uniform(jax.random.wrap_key_data(key, impl="threefry2x32"), (5,))
    )(media_key)
    if config.flip:
        flipped = (draws[:, 0] < config.flip)[:, None, None, None, None]
        frames = jnp.where(flipped, frames[:, :, :, ::-1], frames)
    if config.changes_colours:
        frames = _change_colours(frames, 2.0 * draws[:, 1:] - 1.0, config)
    return frames


def _change_colours(
    frames: UInt8[Array, "M F H W 3"], draws: Float[Array, "M 4"], config: AugmentConfig
) -> UInt8[Array, "M F H W 3"]:
    """Changes brightness, contrast, saturation and hue, with one draw from -1 to 1 for each."""
    brightness, contrast, saturation, hue = (draws[:, i, None, None] for i in range(4))
    contrast, saturation = 1.0 + config.contrast * contrast, 1.0 + config.saturation * saturation
    angle = 2.0 * np.pi * config.hue * hue
    luma, chroma, turned = (jnp.asarray(m, jnp.float32)[None] for m in (_LUMA, _CHROMA, _TURNED))
    # One 3 x 3 matrix for each image.
    matrix = contrast * (luma + saturation * (jnp.cos(angle) * chroma + jnp.sin(angle) * turned))
    # Contrast scales the distance to the mean colour.
    mean = jnp.asarray(MEAN_COLOUR, jnp.float32)[None]
    shift = 255.0 * config.brightness * brightness[:, 0]
    offset = (1.0 - contrast[:, 0]) * mean + shift

    def per_visual(values: Float[Array, "M 3"]) -> Float[Array, "M 1 1 1 3"]:
        return values[:, None, None, None, :]

    values = frames.astype(jnp.float32)
    changed = per_visual(offset)
    for channel in range(3):  # a matrix product would round to bfloat16 on a TPU
        changed = changed + values[..., channel, None] * per_visual(matrix[:, :, channel])
    changed = jnp.clip(jnp.round(changed), 0.0, 255.0).astype(jnp.uint8)
    return jnp.where(_padding(frames), frames, changed)


def _padding(frames: UInt8[Array, "M F H W 3"]) -> Bool[Array, "M F H W 1"]:
    """Returns True on whole rows and columns of the mean colour.

    `read.decode` pads with such rows and columns, and photographs do not have them.
    """
    mean = jnp.asarray(MEAN_COLOUR, jnp.uint8)[None, None, None, None]
    equal = jnp.all(frames == mean, axis=-1, keepdims=True)
    return jnp.all(equal, axis=3, keepdims=True) | jnp.all(equal, axis=2, keepdims=True)
