"""Random left/right flip and colours of training images, on the device.

The paper describes both in B.1.2, and in B.1.3 for the contrastive stage.

    frames uint8[M, F, H, W, 3]  --flip-->  --3 x 3 matrix + offset per visual input-->  uint8[M, F, H, W, 3]
                                                drawn from media_key[m] alone

All frames of a clip get the same. What a visual input becomes is a function of its pixels and its
key: not of the batch, the place in it, or the number of devices. The paper names the two
augmentations and gives no number for them; ours are those of `AugmentConfig`.

Saturation and hue scale and turn the colour (chroma) and leave the brightness (luma), so that all
changes together are one affine map of (R, G, B): nine multiplications per pixel, no tables, no
gathers. dm-pix recolours in HSV instead: up to 70 of 255 apart at our ranges, and 8 times slower on
a CPU.
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
_LUMA = np.tile(_YIQ[0], (3, 1))  # projects on the grey of the same luma
_CHROMA = np.eye(3) - _LUMA
# the chroma, a quarter of the colour circle further
_TURNED = np.linalg.inv(_YIQ) @ _QUARTER_TURN @ _YIQ


def augment(
    frames: UInt8[Array, "M F H W 3"], media_key: UInt32[Array, "M 2"] | None, config: AugmentConfig
) -> UInt8[Array, "M F H W 3"]:
    """Flips and recolours visual inputs; pure.

    Args:
        frames: uint8[M, F, H, W, 3] the pool of a batch.
        media_key: uint32[M, 2] the batch's; each row is a threefry key. None will do where `config`
            has all zeros.
        config: probability and ranges. With all of them 0, `frames` come back bit for bit.

    Returns:
        uint8[M, F, H, W, 3]. Rows and columns that are padding (of the mean colour from end to end)
        keep their colour.

    Raises:
        ValueError: the batch has no keys, and something is to be changed.
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
    return (
        _recoloured(frames, 2.0 * draws[:, 1:] - 1.0, config) if config.changes_colours else frames
    )


def _recoloured(
    frames: UInt8[Array, "M F H W 3"], draws: Float[Array, "M 4"], config: AugmentConfig
) -> UInt8[Array, "M F H W 3"]:
    """The draws, -1 to 1, are those of brightness, contrast, saturation and hue."""
    brightness, contrast, saturation, hue = (draws[:, i, None, None] for i in range(4))
    contrast, saturation = 1.0 + config.contrast * contrast, 1.0 + config.saturation * saturation
    angle = 2.0 * np.pi * config.hue * hue
    luma, chroma, turned = (jnp.asarray(m, jnp.float32)[None] for m in (_LUMA, _CHROMA, _TURNED))
    # One 3 x 3 matrix for each image.
    matrix = contrast * (luma + saturation * (jnp.cos(angle) * chroma + jnp.sin(angle) * turned))
    mean = jnp.asarray(MEAN_COLOUR, jnp.float32)[None]
    offset = (1.0 - contrast[:, 0]) * mean + 255.0 * config.brightness * brightness[
        :, 0
    ]  # contrast turns about the mean

    def per_media(values: Float[Array, "M 3"]) -> Float[Array, "M 1 1 1 3"]:
        return values[:, None, None, None, :]

    values = frames.astype(jnp.float32)
    changed = per_media(offset)
    for channel in range(3):  # written out: a matrix product would round to bfloat16 on a TPU
        changed = changed + values[..., channel, None] * per_media(matrix[:, :, channel])
    changed = jnp.clip(jnp.round(changed), 0.0, 255.0).astype(jnp.uint8)
    return jnp.where(_padding(frames), frames, changed)


def _padding(frames: UInt8[Array, "M F H W 3"]) -> Bool[Array, "M F H W 1"]:
    """Whole rows and columns of the mean colour.

    `images.decode` pads with them, and photographs do not have them.
    """
    mean = jnp.asarray(MEAN_COLOUR, jnp.uint8)[None, None, None, None]
    equal = jnp.all(frames == mean, axis=-1, keepdims=True)
    return jnp.all(equal, axis=3, keepdims=True) | jnp.all(equal, axis=2, keepdims=True)
