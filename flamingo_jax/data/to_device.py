"""Moves batches to the devices, as global arrays sharded over the data axes of the mesh.

The data axes are replica and data. Each process passes only its rows: no process has the global
batch in memory.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.data.schema import Batch

DATA_AXES = ("replica", "data")


def to_device(batch: Batch[np.ndarray], mesh: Mesh | None = None) -> Batch[jax.Array]:
    """Moves a batch to the devices.

    Args:
        batch: this process's rows, in numpy arrays, made for the number of data shards of the mesh.
        mesh: has the axes replica and data; None = the default device.

    Returns:
        The global batch. The first axis of each array is split over replica and data, in this
        order.

    Raises:
        ValueError: the rows or the pool do not split evenly over the shards.
    """
    if mesh is None:
        return jax.device_put(batch)
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXES))
    num_shards = int(np.prod([mesh.shape[axis] for axis in DATA_AXES]))

    def place(array: np.ndarray) -> jax.Array:
        try:
            return jax.make_array_from_process_local_data(sharding, array)
        except ValueError as error:
            raise ValueError(
                f"A batch array of shape {array.shape} cannot be split over {num_shards} data "
                "shards on its first axis. Make the batch with num_shards = replica * data."
            ) from error

    return jax.tree.map(place, batch)
