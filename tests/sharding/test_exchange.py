"""Products with sums by all-to-all equal plain ones, with their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.nn import linear
from flamingo_jax.sharding import exchange
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

COLUMNS = ((3, 8, 2, 4), (None, "heads", "head_dim", "embed"), (3,), (16, 2, 4))
ROWS = ((8, 2, 4), ("heads", "head_dim", "embed"), (0, 1), (16, 2, 8, 2))


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize("case", [COLUMNS, ROWS], ids=["columns", "rows"])
def test_a_product_and_its_gradients_are_the_plain_ones(case, stored):
    shape, axes, contracted, x_shape = case
    mesh = make_mesh(MeshConfig(1, 2, 4))
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((x_shape, shape)))
    if stored == "int8":
        w = Int8Weight.of(w, contracted)
    multiply = lambda x, w: linear.product(x, w, contracted)
    summed = functools.partial(exchange.product, mesh, multiply, axes, contracted)

    def results(product):
        y, pull = jax.vjp(product, x, w)
        gradients = pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
        return y, gradients[0], None if stored == "int8" else gradients[1]

    found = jax.jit(lambda: results(summed))()
    expected = jax.jit(lambda: results(multiply))()
    split = found[0 if case is ROWS else 1]  # the sum: its rows are on all chips
    assert split.sharding.shard_shape(split.shape)[0] == 2
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected
    )
