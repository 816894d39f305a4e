"""The gradient of a grouped convolution on images that several chips have in common.

XLA's partitioner has a fault there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flamingo_jax.core.axes import constrain, is_spread, with_layout
from flamingo_jax.nn import conv
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])
RNG = np.random.default_rng(0)
W = RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)


def gradients(images, convolve, layout):
    x = RNG.normal(size=(images, 6, 6, 8)).astype(np.float32)

    def loss(x, w):
        x = constrain(x, "images", None, None, None)
        return jnp.sum(jnp.sin(convolve(x, w)))

    def both(x, w):
        with with_layout(layout):
            return jax.grad(loss, argnums=(0, 1))(x, w)

    split = NamedSharding(MESH, PartitionSpec("data"))
    whole = NamedSharding(MESH, PartitionSpec())
    on_mesh = jax.jit(both, in_shardings=(split, whole), out_shardings=whole)
    return on_mesh(x, W), jax.jit(jax.grad(loss, argnums=(0, 1)))(x, W)


@pytest.mark.parametrize("images", [4, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", [conv._grouped, conv._group_by_group])
def test_gradient_is_that_of_one_device(images, stride, form):
    """On (1, 4, 2) each of 4 images is on two chips, each of 8 on one.

    1e-5: float32 sums of 1e2 terms in another order.
    """
    convolve = lambda x, w: form(x, w, stride, 2)
    found, expected = gradients(images, convolve, Layout(MESH))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_fault_is_still_there():
    """If this fails, XLA is repaired, and `conv._grouped` can be removed."""
    (_, doubled), (_, expected) = gradients(
        4, lambda x, w: conv._convolve(x, w, 1, 2), Layout(MESH)
    )
    np.testing.assert_allclose(doubled, 2 * expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_images_are_spread_where_they_divide_over_all_chips():
    assert is_spread(3, "images")  # no layout: one chip
    with with_layout(Layout(MESH)):
        assert [is_spread(images, "images") for images in (4, 8, 12, 16)] == [
            False,
            True,
            False,
            True,
        ]
