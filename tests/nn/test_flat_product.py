"""The product on a CPU is the same function, and its gradient needs no copy in another order."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.axes import with_layout
from flamingo_jax.nn import linear
from flamingo_jax.nn.flat_product import LEAST_SIZE, contract
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.sharding.chips import Single

RNG = np.random.default_rng(0)


def draw(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def plain(x, w, num_in=1):
    return linear._contract(x, w, tuple(range(num_in)))


def product(x, w):
    return linear.product(x, w)


@pytest.mark.parametrize(
    ("x", "w", "num_in"), [((2, 3, 64), (64, 128), 1), ((2, 3, 8, 8), (8, 8, 2, 64), 2)]
)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_those_of_the_plain_form(x, w, num_in, dtype, bound):
    """Relative to the largest: sums of up to 64 terms in another order, rounded to the dtype."""
    x, w = draw(*x, dtype=dtype), draw(*w, dtype=dtype)

    def run(form):
        def loss(x, w):
            y = form(x, w, num_in)
            return jnp.sum(jnp.sin(y).astype(jnp.float32)), y

        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, w))

    for found, expected in zip(run(contract), run(plain), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_gradient_of_the_weight_needs_no_copy():
    """If the plain form needs none either, `nn.flat_product` can be removed."""
    x, w, dy = draw(2, 32, 64), draw(64, 128), draw(2, 32, 128)

    def copies(form):
        gradient = lambda x, dy: jax.vjp(lambda w: form(x, w), w)[1](2 * dy)
        text = jax.jit(gradient).lower(x, dy).compile().as_text()
        return re.findall(r" (?:copy|transpose)\(", text)

    assert copies(plain)
    assert not copies(lambda x, w: contract(x, w, 1))


def program(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


@pytest.mark.parametrize(
    ("platform", "rows", "kept"),
    [
        ("cpu", LEAST_SIZE // 8, False),
        ("cpu", LEAST_SIZE // 8 - 1, True),
        ("tpu", LEAST_SIZE, True),
        ("gpu", LEAST_SIZE, True),
        (None, LEAST_SIZE, True),
    ],
)
def test_large_weights_on_a_cpu_have_it(platform, rows, kept):
    x, w = draw(2, 3, rows), draw(rows, 8)

    def run(x, w):
        with with_layout(platform and Single(platform).layout):
            return product(x, w)

    assert (program(run, x, w) == program(plain, x, w)) == kept


def test_several_devices_keep_the_plain_form():
    x, w = draw(2, 3, LEAST_SIZE), draw(LEAST_SIZE, 8)

    def run(x, w):
        with with_layout(Layout(make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2]))):
            return product(x, w)

    assert program(run, x, w) == program(plain, x, w)
