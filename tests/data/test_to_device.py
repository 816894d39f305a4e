"""Batches on the host become global arrays, split by rows over replica and data, in this order."""

import jax
import numpy as np
import pytest

from flamingo_jax.data.schema import Batch
from flamingo_jax.data.to_device import to_device


def batch(rows: int, pool: int) -> Batch:
    return Batch(
        tokens=np.arange(rows * 3, dtype=np.int32).reshape(rows, 3),
        segment=np.ones((rows, 3), np.int32),
        loss_weights=np.ones((rows, 3), np.float32),
        media_index=np.zeros((rows, 3), np.int32),
        media_slot=np.full((rows, 2), -1, np.int32),
        frames=np.arange(pool * 12, dtype=np.uint8).reshape(pool, 1, 2, 2, 3),
        frame_mask=np.ones((pool, 1), bool),
    )


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    devices = np.array(jax.devices()).reshape(2, 2, 2)
    return jax.sharding.Mesh(
        devices, ("replica", "data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 3
    )


@pytest.mark.parametrize("pool", [8, 0])
def test_rows_are_split_over_replica_and_data(mesh, pool):
    host = batch(4, pool)
    placed = to_device(host, mesh)
    for name in ("tokens", "frames", "frame_mask", "loss_weights"):
        array, expected = getattr(placed, name), getattr(host, name)
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
        for shard in array.addressable_shards:
            replica, data, _ = np.argwhere(mesh.devices == shard.device)[0]
            rows = len(expected) // 4
            first = (2 * replica + data) * rows
            np.testing.assert_array_equal(shard.data, expected[first : first + rows])


def test_without_a_mesh_the_default_device_has_it():
    host = batch(3, 2)
    placed = to_device(host)
    assert placed.tokens.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(placed.frames, host.frames)


def test_rows_that_cannot_be_split_are_refused(mesh):
    with pytest.raises(ValueError, match=r"shape \(3, 3\) cannot be split over 4 data shards"):
        to_device(batch(3, 4), mesh)
