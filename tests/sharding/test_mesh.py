"""The mesh always has three axes, and an error says what is wrong if devices do not fit."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from flamingo_jax.core.config import ConfigError
from flamingo_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh, num_batch_shards
from tests.sharding import chips


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
    assert dict(make_mesh(MeshConfig(data=-1, model=2)).shape) == {
        "replica": 1,
        "data": 4,
        "model": 2,
    }


def test_one_device_of_eight():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize("sizes", [{}, {"data": 3}, {"data": -1, "model": 3}, {"replica": 16}])
def test_wrong_number_of_devices_is_an_error(sizes):
    with pytest.raises(ValueError, match=r"needs \d+ device.*there are 8.*config\.mesh"):
        make_mesh(MeshConfig(**sizes))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="data is 0; expected .* or -1 for all"):
        MeshConfig(data=0)
    with pytest.raises(ValueError, match="more than one -1"):
        MeshConfig(data=-1, model=-1)


def test_batch_is_split_over_replica_and_data():
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2))
    array = jax.device_put(jnp.arange(8), batch_sharding(mesh))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2,)}


def neighbours(a, b, shape):
    """Returns True if two chips have a link: one step along one dimension of the torus."""
    steps = [
        min((x - y) % size, (y - x) % size)
        for x, y, size in zip(a.coords, b.coords, shape, strict=True)
    ]
    return sum(steps) == 1


@pytest.mark.parametrize(
    ("shape", "sizes", "block", "is_ring"),
    [
        ((8, 12, 16), (3, 32, 16), (4, 4, 1), True),
        ((8, 12, 16), (3, 32, 16), (1, 1, 16), True),  # a whole ring of the torus
        ((8, 12, 16), (3, 32, 16), (1, 4, 4), True),
        ((8, 12, 16), (3, 32, 16), (2, 1, 8), True),
        ((8, 12, 16), (3, 64, 8), (2, 4, 1), True),
        ((4, 4, 4), (1, 16, 4), (2, 2, 1), True),
        ((4, 4, 4), (1, 8, 8), (2, 2, 2), False),  # three dimensions: a block, but no ring
        ((3, 3, 4), (1, 4, 9), (3, 3, 1), False),  # an odd block has no ring
    ],
)
def test_a_model_group_is_a_block_of_neighbouring_chips(shape, sizes, block, is_ring):
    """Coordinates of a slice may start at any number."""
    chips_of_slice = chips.torus(*shape)
    for chip in chips_of_slice:
        chip.coords = tuple(place + 2 for place in chip.coords)
    random.Random(0).shuffle(chips_of_slice)
    config = MeshConfig(*sizes, model_chips=block)
    mesh = make_mesh(config, chips_of_slice)
    assert mesh.devices.shape == sizes
    assert len({chip.coords for chip in mesh.devices.flat}) == mesh.size == len(chips_of_slice)
    for group in mesh.devices.reshape(-1, sizes[2]):
        places = np.array([chip.coords for chip in group])
        np.testing.assert_array_equal(places.max(axis=0) - places.min(axis=0) + 1, block)
        if is_ring:
            assert all(
                neighbours(a, b, shape) for a, b in zip(group, np.roll(group, -1), strict=True)
            )


def test_the_data_axis_of_the_pod_goes_round_whole_rings():
    """8 x 12 x 16 in planes of 4 x 4: the second axis has the 3 replicas.

    A data group has all chips along the other axes.
    """
    mesh = make_mesh(MeshConfig(3, 32, 16, model_chips=(4, 4, 1)), chips.torus(8, 12, 16))
    for replica in range(3):
        places = np.array([chip.coords for chip in mesh.devices[replica].flat])
        assert (places.min(axis=0).tolist(), places.max(axis=0).tolist()) == (
            [0, 4 * replica, 0],
            [7, 4 * replica + 3, 15],
        )


@pytest.mark.parametrize(
    "block",
    [(4, 2, 1), (3, 4, 1), (16, 1, 1), (4, 4), (1, 16, 1)],
    ids=[
        "too small",
        "does not divide",
        "longer than the slice",
        "two dimensions",
        "a ring of another length",
    ],
)
def test_a_block_that_does_not_fit_is_one_clear_error(block):
    config = MeshConfig(3, 32, 16, model_chips=block)
    with pytest.raises(
        ConfigError, match=r"config\.mesh\.model_chips = .*mesh\.model = 16.*8x12x16 chips"
    ):
        make_mesh(config, chips.torus(8, 12, 16))


def test_blocks_need_each_chip_of_the_slice_once():
    cores = chips.torus(4, 4, 2) * 2  # two devices on each chip, as before megacores
    with pytest.raises(
        ConfigError,
        match=r"config\.mesh\.model_chips needs one device for each chip.* 64 on 32 chips",
    ):
        make_mesh(MeshConfig(1, 16, 4, model_chips=(2, 2, 1)), cores)
    with pytest.raises(
        ConfigError,
        match=r"config\.mesh\.model_chips needs one device for each chip.* 28 on 32 chips",
    ):
        make_mesh(MeshConfig(1, 7, 4, model_chips=(2, 2, 1)), chips.torus(4, 4, 2)[4:])


def test_devices_without_a_place_ignore_blocks():
    """The config of a pod also runs on CPU devices."""
    assert make_mesh(MeshConfig(data=2, model=4, model_chips=(2, 2, 1))).size == 8
