"""The device mesh: always three axes, (replica, data, model) (paper, B.1.2).

    replica   whole copies of the model; only gradients cross it
    data      the batch is split over replica x data; the optimizer state can be sharded over it (ZeRO-1)
    model     Megatron's tensor parallelism: heads, mlp and vocabulary are split over it

The 80B run: 1536 chips = (3, 32, 16), since 8192 is not divisible by 96 and must be by 32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core.config import ConfigError

AXES = ("replica", "data", "model")
BATCH_AXES = ("replica", "data")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; 1 is allowed everywhere, and -1, once, means "all that are left"."""

    replica: int = 1
    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        for name, size in self.sizes().items():
            if size < 1 and size != -1:
                raise ValueError(
                    f"mesh.{name} is {size}; expected a number of devices (>= 1), or -1 for all that are left."
                )
        if list(self.sizes().values()).count(-1) > 1:
            raise ValueError(
                f"The mesh {self.sizes()} has more than one -1; at most one axis can take all devices that are left."
            )

    def sizes(self) -> dict[str, int]:
        """Returns {axis: size} in mesh order."""
        return {name: getattr(self, name) for name in AXES}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges the devices in a (replica, data, model) mesh, with neighbours on the model axis.

    Args:
        config: the sizes of the axes.
        devices: the devices to use; all of them by default.

    Raises:
        ConfigError: if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes()
    given = math.prod(size for size in sizes.values() if size != -1)
    shape = tuple(len(devices) // given if size == -1 else size for size in sizes.values())
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"The mesh {sizes} needs {math.prod(shape) or given} device(s), but there are {len(devices)} ({devices[0].platform}): change "
            f"config.mesh.{{replica,data,model}} so that they multiply to {len(devices)} (mesh.data=-1 takes all that are left)."
        )
    # (3, 32, 16) splits a physical axis of the torus; jax >= 0.9 would default to Explicit axes.
    array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(array), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Returns over how many shards the batch is split."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every array of a Batch: axis 0 over (replica, data)."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def reader(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count) of this process among those that read a batch.

    Processes whose devices hold the same part of the batch, because the model axis runs across them, read the same rows.

    Raises:
        ValueError: if this process's devices do not hold one even, contiguous part of the batch.
    """
    num_shards, own = num_batch_shards(mesh), set()
    by_shard = mesh.devices.reshape(num_shards, -1)
    for shard in range(num_shards):
        if any(device.process_index == jax.process_index() for device in by_shard[shard]):
            own.add(shard)
    first, size = min(own), len(own)
    if own != set(range(first, first + size)) or num_shards % size or first % size:
        raise ValueError(
            f"The devices of process {jax.process_index()} hold parts {sorted(own)} of {num_shards} of the batch; expected one even, "
            "contiguous part. Choose config.mesh so that the model axis divides the devices of a process, or is divided by them."
        )
    return first // size, num_shards // size
