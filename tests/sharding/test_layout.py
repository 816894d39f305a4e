"""Shardings of activations and gradients on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flamingo_jax.core.axes import constrain, constrain_gradient, with_layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

RESIDUAL = ("rows", "sequence", "embed")


def placed(shape, axes, sizes, **fields):
    """Returns the PartitionSpec of an activation under jit, without replicated last dimensions."""
    config = MeshConfig(*sizes, **fields)
    layout = config.layout(make_mesh(config))
    out = jax.jit(lambda x: layout.activation(x, axes))(jnp.zeros(shape))
    return tuple(out.sharding.spec)


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((8, 6, 4), RESIDUAL, (("data", "model"),)),  # rows over all chips
        # 8 chips do not divide 6 rows: split by length in a model group.
        ((6, 8, 4), RESIDUAL, ("data", "model")),
        ((6, 6, 4), RESIDUAL, ("data",)),  # and 4 does not divide the length
        ((3, 8, 4), RESIDUAL, (None, "model")),
        ((6, 8, 4, 3), ("batch", "length", "heads", "head_dim"), ("data", None, "model")),
        ((6, 8, 16), ("batch", "length", "mlp"), ("data", None, "model")),
        ((6, 8, 32), ("batch", "length", "vocab"), ("data", None, "model")),
        ((8, 2, 2, 3), ("images", None, None, None), (("data", "model"),)),
        ((4, 2, 2, 3), ("images", None, None, None), ("data",)),  # too few images for all chips
    ],
)
def test_activations(shape, axes, expected):
    """On a mesh (1, 2, 4); the replica axis of size 1 is not compared."""
    found = placed(shape, axes, (1, 2, 4))
    without = tuple(_without_replica(entry) for entry in found)
    while without and without[-1] is None:
        without = without[:-1]
    assert without == expected


def _without_replica(entry):
    names = (entry,) if isinstance(entry, str) else entry or ()
    names = tuple(name for name in names if name != "replica")
    return names[0] if len(names) == 1 else names or None


def test_the_residual_stream_is_whole_in_each_model_group_without_sequence_parallelism():
    x = jnp.zeros((8, 8, 4))
    for split, expected in ((True, (1, 8, 4)), (False, (4, 8, 4))):
        config = MeshConfig(1, 2, 4, sequence_parallel=split)
        layout = config.layout(make_mesh(config))
        out = jax.jit(lambda x, layout=layout: layout.activation(x, RESIDUAL))(x)
        assert out.sharding.shard_shape(x.shape) == expected


def gradient_of(config, axes=("embed", "mlp"), shape=(8, 16)):
    """Returns one device's shape of a gradient; the loss sums over rows of a split batch."""
    mesh = make_mesh(config)
    layout = config.layout(mesh)
    by_row = jax.sharding.NamedSharding(mesh, P(("replica", "data"), None))
    rows = jax.device_put(jnp.arange(64.0).reshape(8, 8), by_row)

    def loss(w):
        with with_layout(layout):
            w = constrain_gradient(w, axes)
            return jnp.sum(constrain(rows @ w, "batch", "mlp") ** 2)

    w = jnp.ones(shape)
    expected = jax.grad(lambda w: jnp.sum((jnp.arange(64.0).reshape(8, 8) @ w) ** 2))(w)
    out = jax.jit(jax.grad(loss))(w)
    np.testing.assert_allclose(out, expected, rtol=1e-6)  # float32, 8 rows in another order
    return out.sharding.shard_shape(shape)


@pytest.mark.parametrize(
    ("sizes", "zero", "part"),
    [
        ((1, 2, 4), True, (4, 4)),
        ((2, 2, 2), True, (4, 8)),
        ((1, 8, 1), True, (1, 16)),  # mlp is split over the model axis only, of any size
        ((1, 2, 4), False, None),
    ],
)
def test_gradients_are_split_as_zero_splits_the_optimizer(sizes, zero, part):
    found = gradient_of(MeshConfig(*sizes, zero=zero))
    assert found[0] == 8 if part is None else found == part


def test_without_a_layout_nothing_is_placed():
    x = jnp.zeros((8, 8, 4))
    assert constrain(x, *RESIDUAL) is x and constrain_gradient(x, RESIDUAL) is x
    config = MeshConfig()
    layout = config.layout(make_mesh(config, jax.devices()[:1]))
    assert layout.activation(x, RESIDUAL) is x and layout.weight(x, RESIDUAL) is x


def test_an_axis_that_is_not_in_the_table_is_an_error():
    config = MeshConfig(1, 2, 4)
    with pytest.raises(KeyError, match="colour"):
        config.layout(make_mesh(config)).activation(jnp.zeros(8), ("colour",))
