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


def slices(*sizes, first=0):
    """Returns the chips of slices of 4 x 4 x N, in a random order."""
    found = [
        chip
        for index, size in enumerate(sizes)
        for chip in chips.torus(4, 4, size, slice_index=first + index)
    ]
    random.Random(0).shuffle(found)
    return found


@pytest.mark.parametrize("block", [(), (2, 2, 1)])
@pytest.mark.parametrize("replica", [2, 4, -1])
def test_the_replica_axis_crosses_the_slices_and_no_other(replica, block):
    config = MeshConfig(replica, -1 if replica > 0 else 8, 4, model_chips=block, slices=2)
    mesh = make_mesh(config, slices(4, 4, first=1))  # the first index may be any
    index = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    halves = np.split(index, 2)
    assert [set(half.flat) for half in halves] == [{1}, {2}]
    assert len(set(mesh.devices.flat)) == 128 == mesh.size
    # The slices have the same layout: a part of a gradient is at the same place in each.
    first, second = ([chip.coords for chip in half.flat] for half in np.split(mesh.devices, 2))
    assert first == second


@pytest.mark.parametrize(
    ("sizes", "config", "message"),
    [
        ((4, 4), {"replica": 3, "data": -1, "slices": 2}, "needs 126 device"),
        ((4, 4), {"data": -1, "slices": 2}, r"replica is 1, and config\.mesh\.slices = 2"),
        ((4, 4, 4), {"replica": 2, "data": -1, "slices": 2}, r"are on 3 slice\(s\)"),
        ((4,), {"replica": 2, "data": -1, "slices": 2}, r"are on 1 slice\(s\)"),
        ((4, 2), {"replica": 2, "data": -1, "slices": 2}, r"= \{0: 64, 1: 32\}; expected 2 of"),
        # As one slice, chips would be neighbours that have no link.
        ((4, 4), {"data": -1}, r"slices is 1, but the devices are on 2 slice\(s\)"),
    ],
)
def test_slices_that_do_not_fit_are_one_clear_error(sizes, config, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_mesh(MeshConfig(**config), slices(*sizes))
    assert "\n" not in str(error.value)


def test_devices_without_a_slice_index_are_one_slice():
    with pytest.raises(ConfigError, match=r"slices is 2, but the devices \(cpu\) have no slice"):
        make_mesh(MeshConfig(replica=2, data=4, slices=2))


def test_simulated_slices_sum_over_all_rows(monkeypatch):
    """CPU devices with false slice indices, in the opposite order of their numbers."""
    devices = jax.devices()
    by_slice = {device: 1 - i // 4 for i, device in enumerate(devices)}
    monkeypatch.setattr(
        type(devices[0]), "slice_index", property(by_slice.__getitem__), raising=False
    )
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2, slices=2))
    assert {by_slice[device] for device in mesh.devices[0].flat} == {0}
    rows = jax.device_put(jnp.arange(8.0), batch_sharding(mesh))
    assert float(jnp.sum(rows)) == 28.0


def test_devices_without_a_place_ignore_blocks():
    """The config of a pod also runs on CPU devices."""
    assert make_mesh(MeshConfig(data=2, model=4, model_chips=(2, 2, 1))).size == 8
