"""The named models: every weight with its shape and axes, recorded; the tiny ones' sizes."""

import haiku as hk
import jax
import jax.numpy as jnp
import pytest

from flamingo_jax.core import axes, trees
from flamingo_jax.core.params import axes_of
from flamingo_jax.models.contrastive import Contrastive, ContrastiveConfig
from flamingo_jax.models.nfnet import NFNet
from flamingo_jax.models.resampler import Resampler
from flamingo_jax.models.sizes import NFNETS, RESAMPLERS, TEXT_ENCODERS, TILED_VITS, VITS
from flamingo_jax.models.tiled_vit import TiledViT
from flamingo_jax.models.vit import ViT


def _of(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


# name -> (function of the arrays, the arrays)
MODELS = {
    "nfnet_f0": (lambda x: NFNet(NFNETS["F0"])(x), [_of(jnp.float32, 1, 64, 64, 3)]),
    "vit_tiny": (lambda x: ViT(VITS["tiny"])(x), [_of(jnp.float32, 1, 32, 32, 3)]),
    "tiled_vit_tiny": (
        lambda x, numbers: TiledViT(TILED_VITS["tiny"])(x, numbers),
        [_of(jnp.float32, 1, 4, 16, 16, 3), _of(jnp.int32, 1, 4)],
    ),
    "resampler_tiny": (
        lambda x, mask: Resampler(RESAMPLERS["tiny"])(x, mask),
        [_of(jnp.float32, 1, 1, 16, NFNETS["tiny"].width), _of(jnp.bool_, 1, 1)],
    ),
    "contrastive_tiny": (
        lambda *batch: Contrastive(
            NFNETS["tiny"], TEXT_ENCODERS["tiny"], ContrastiveConfig(joint_dim=64)
        )(*batch),
        [_of(jnp.uint8, 2, 1, 32, 32, 3), _of(jnp.int32, 2, 16), _of(jnp.int32, 2, 16)],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_their_shapes_and_axes(name, golden):
    """One line for each weight: path, shape, logical axes.

    A renamed weight breaks every checkpoint: think twice.
    """
    function, arrays = MODELS[name]
    init = hk.transform(function).init
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0), *arrays))
    names = axes_of(init, jax.random.key(0), *arrays)
    for path in names:
        axes.spec(names[path])
    golden(
        f"models/{name}.txt",
        "\n".join(
            f"{path} {list(shapes[path].shape)} "
            f"{' '.join(str(axis) for axis in names[path])}".rstrip()
            for path in shapes
        ),
    )


def test_tiny_encoder_makes_a_4x4_grid_of_32x32_pictures():
    network = hk.without_apply_rng(hk.transform(lambda x: NFNet(NFNETS["tiny"])(x)))
    images = _of(jnp.float32, 5, 32, 32, 3)
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    assert jax.eval_shape(network.apply, params, images).shape == (5, 4, 4, 96)
