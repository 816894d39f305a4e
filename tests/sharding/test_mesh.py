"""The mesh has three axes, always, and says what is wrong when the devices do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh, num_batch_shards


def test_mesh_has_three_auto_axes():
    mesh = make_mesh(MeshConfig(replica=1, data=2, model=4))
    assert dict(mesh.shape) == {"replica": 1, "data": 2, "model": 4}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert num_batch_shards(mesh) == 2


def test_neighbours_are_on_the_model_axis():
    mesh = make_mesh(MeshConfig(data=2, model=4))
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    np.testing.assert_array_equal(ids[0, 0], [0, 1, 2, 3])


def test_minus_one_takes_what_is_left():
    assert dict(make_mesh(MeshConfig(data=-1, model=2)).shape) == {"replica": 1, "data": 4, "model": 2}


def test_one_device_of_eight():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize("sizes", [{}, {"data": 3}, {"data": -1, "model": 3}, {"replica": 16}])
def test_wrong_number_of_devices_is_an_error(sizes):
    with pytest.raises(ValueError, match=r"needs \d+ device.*there are 8.*config\.mesh"):
        make_mesh(MeshConfig(**sizes))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match=r"mesh\.data is 0"):
        MeshConfig(data=0)
    with pytest.raises(ValueError, match="more than one -1"):
        MeshConfig(data=-1, model=-1)


def test_batch_is_split_over_replica_and_data():
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2))
    array = jax.device_put(jnp.arange(8), batch_sharding(mesh))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2,)}


def test_shardings_follow_the_axes():
    mesh = make_mesh(MeshConfig(data=2, model=4))
    tree = {"block": {"w": jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)}}
    shardings = compile_lib.shardings_of(tree, {"block/w": ("layers", "mlp", "embed")}, mesh)
    assert shardings["block"]["w"].spec == PartitionSpec(None, "model", None)
    abstract = compile_lib.with_shardings(tree, shardings)
    assert abstract["block"]["w"].sharding == shardings["block"]["w"]


def test_a_dimension_that_its_axis_does_not_divide_is_named():
    mesh = make_mesh(MeshConfig(data=2, model=4))
    tree = {"block": {"w": jax.ShapeDtypeStruct((6, 4), jnp.float32)}}
    with pytest.raises(ValueError, match=r"block/w has 6 of 'mlp'.*model = 4 does not divide"):
        compile_lib.shardings_of(tree, {"block/w": ("mlp", "embed")}, mesh)
