"""Products apart from their collectives equal plain ones, with their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.nn import linear
from flamingo_jax.sharding import exchange
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

CASES = {
    "columns": ((3, 8, 2, 4), (None, "heads", "head_dim", "embed"), (3,), (16, 2, 4)),
    "a key head of two chips": ((4, 2, 3), ("embed", "kv_heads", "head_dim"), (0,), (16, 2, 4)),
    "rows": ((8, 2, 4), ("heads", "head_dim", "embed"), (0, 1), (16, 2, 8, 2)),
}


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize("sums", ["reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("case", CASES)
def test_a_product_and_its_gradients_are_the_plain_ones(case, sums, stored):
    shape, axes, contracted, x_shape = CASES[case]
    mesh = make_mesh(MeshConfig(1, 2, 4))
    x, w = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((x_shape, shape)))
    if stored == "int8":
        w = Int8Weight.of(w, contracted)
    multiply = lambda x, w: linear.product(x, w, contracted)

    def apart(x, w):
        if case == "rows":
            summands = exchange.in_summands(mesh, multiply, axes, contracted, x, w)
            return exchange.summed(mesh, sums, summands)
        copies = exchange.gathered(mesh, sums, x)
        return exchange.of_copies(mesh, multiply, axes, contracted, copies, w)

    def results(product):
        y, pull = jax.vjp(product, x, w)
        gradients = pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
        return y, gradients[0], None if stored == "int8" else gradients[1]

    found = jax.jit(lambda: results(apart))()
    expected = jax.jit(lambda: results(multiply))()
    summed = found[0 if case == "rows" else 1]
    assert summed.sharding.shard_shape(summed.shape)[0] == 2, "its rows are on all chips"
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected
    )


def test_copies_and_summands_are_apart_on_the_chips():
    """Each chip has all rows of its group, and no sum has been made."""
    mesh = make_mesh(MeshConfig(1, 2, 4))
    x = jnp.arange(32.0).reshape(16, 2)
    copies = jax.jit(functools.partial(exchange.gathered, mesh, "all_to_all"))(x)
    np.testing.assert_array_equal(copies, np.broadcast_to(x, (4, 16, 2)))
    assert copies.sharding.shard_shape(copies.shape) == (1, 8, 2)
    w = jnp.arange(8.0).reshape(8, 1)
    multiply = lambda x, w: x @ w
    product = functools.partial(exchange.in_summands, mesh, multiply, ("mlp", "embed"), (0,))
    summands = jax.jit(product)(jnp.ones((16, 8)), w)
    assert summands.sharding.shard_shape(summands.shape) == (1, 8, 1)
    np.testing.assert_array_equal(summands[:, 0, 0], [1.0, 5.0, 9.0, 13.0])
