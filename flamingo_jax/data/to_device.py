"""From host batches to global arrays, sharded over the data axes of the mesh (replica and data).

Each process hands over its own rows; no process ever holds the global batch.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.data.schema import Batch

DATA_AXES = ("replica", "data")


def to_device(batch: Batch, mesh: Mesh | None = None) -> Batch:
    """Moves a batch to the devices.

    Args:
        batch: this process's rows, in numpy arrays, made for as many data shards as the mesh has.
        mesh: mesh with axes replica and data; None = the default device.

    Returns:
        The global batch, every array split on its first axis over replica and data, in that order.

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
