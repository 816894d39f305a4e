"""The device mesh: always three axes, (replica, data, model) (paper, B.1.2).

    replica   whole copies of the model; only gradients cross it, also between TPU slices: there
              once per update
    data      the batch is split over replica x data, and the optimizer's state over data (ZeRO-1)
    model     Megatron's tensor parallelism: splits heads, mlp and vocabulary

The 80B run has 1536 chips = (3, 32, 16). One data axis of 96 would not divide its width of 8192; 32
does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import ranges
from flamingo_jax.core.config import ConfigError
from flamingo_jax.sharding import exchange
from flamingo_jax.sharding.layout import Layout

AXES = ("replica", "data", "model")
BATCH_AXES = ("replica", "data")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The number of devices of each mesh axis, and what is split over them.

    Attributes:
        replica, data, model: devices along each mesh axis. One of them may be -1: all devices that
            are left.
        model_chips: the block of the torus that a model group occupies, as chips along each axis of
            the torus, such as (4, 4, 1), a plane, or (1, 1, 16), a ring. () leaves the choice to
            jax.experimental.mesh_utils.
        slices: TPU slices that the network of the data centre connects. The replica axis crosses
            them, so that replica is a multiple of this number; data and model stay inside a slice.
        zero: True to split gradients, moments and float32 weights over data (ZeRO-1).
        sequence_parallel: True to split the residual stream between blocks over model.
        halves: True to run Flamingo's LM blocks for two halves of a chip's rows in turn, so that
            one is sent while the other is computed (`models.halves`). It needs an even number of
            rows for each chip, sequence_parallel, and model > 1. What it does not serve is computed
            whole: other batches, gradients that several slices sum once, decoding, grafted blocks,
            an LM that is trained alone, and blocks with adapters, with a norm after their products
            or with their parts in parallel. A group of blocks between two cross-attention layers
            is compiled as one body, so compile time grows with `xattn.every`.
        sums: the collective of the sums over model in such blocks. "all_to_all" can run while a
            TPU computes, but loads links more (`sharding.exchange`).
    """

    replica: int = 1
    data: int = 1
    model: int = 1
    model_chips: tuple[int, ...] = ()
    slices: int = 1
    zero: bool = True
    sequence_parallel: bool = True
    halves: bool = False
    sums: exchange.Sums = "reduce_scatter"

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1, also=(-1, "all devices that are left")), *AXES)
        ranges.check(self, ranges.whole(1), "model_chips", "slices")
        if list(self.sizes().values()).count(-1) > 1:
            raise ValueError(
                f"The mesh {self.sizes()} has more than one -1; at most one axis can take all "
                "devices that are left."
            )

    def layout(self, mesh: Mesh) -> Layout:
        """Returns the layout of activations and gradients on a mesh."""
        return Layout(
            mesh,
            zero=self.zero,
            sequence_parallel=self.sequence_parallel,
            halves=self.halves,
            sums=self.sums,
        )

    def sizes(self) -> dict[str, int]:
        """Returns {axis: size} in mesh order."""
        return {name: getattr(self, name) for name in AXES}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a (replica, data, model) mesh; the model axis connects neighbours.

    Args:
        config: the sizes of the axes.
        devices: the devices to use; all of them by default.

    Raises:
        ConfigError: if the sizes do not multiply to the number of devices, or the devices are not
            on `slices` equal slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes()
    given = math.prod(size for size in sizes.values() if size != -1)
    shape = tuple(len(devices) // given if size == -1 else size for size in sizes.values())
    if math.prod(shape) != len(devices):
        raise ConfigError(
            f"The mesh {sizes} needs {math.prod(shape) or given} device(s), but there are "
            f"{len(devices)} ({devices[0].platform}): change config.mesh.{{replica,data,model}} so "
            f"that they multiply to {len(devices)} (mesh.data=-1 takes all that are left)."
        )
    if shape[0] % config.slices:
        raise ConfigError(
            f"config.mesh.replica is {shape[0]}, and config.mesh.slices = {config.slices} does not "
            "divide it: the replica axis crosses the slices, so it must be a multiple."
        )
    inside = (shape[0] // config.slices, *shape[1:])
    array = np.concatenate(
        [_arranged(part, inside, config.model_chips) for part in _slices(devices, config.slices)]
    )
    # jax >= 0.9 would default to Explicit axes.
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[jax.Device], num_slices: int) -> list[list[jax.Device]]:
    """Returns the devices of each slice.

    Raises:
        ConfigError: if there are not `num_slices` slices, or they differ in size.
    """
    if num_slices > 1 and not hasattr(devices[0], "slice_index"):
        raise ConfigError(
            f"config.mesh.slices is {num_slices}, but the devices ({devices[0].platform}) have no "
            "slice index: it is for several TPU slices; leave it at 1."
        )
    if num_slices == 1 and devices[0].platform != "tpu":
        return [list(devices)]  # elsewhere an index may count something else, such as hosts
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    sizes = {index: len(slices[index]) for index in sorted(slices)}
    if len(slices) != num_slices or len(set(sizes.values())) > 1:
        raise ConfigError(
            f"config.mesh.slices is {num_slices}, but the devices are on {len(slices)} slice(s), "
            f"{{index: devices}} = {sizes}; expected {num_slices} of the same size."
        )
    return [slices[index] for index in sizes]


def _arranged(
    devices: Sequence[jax.Device], shape: tuple[int, ...], block: tuple[int, ...]
) -> np.ndarray:
    """Returns the devices of a slice as an array of this shape."""
    if block and hasattr(devices[0], "coords"):
        return _blocks(devices, shape, block)
    # (3, 32, 16) splits a physical axis of the torus
    return np.asarray(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True))


def _blocks(
    devices: Sequence[jax.Device], shape: tuple[int, ...], block: tuple[int, ...]
) -> np.ndarray:
    """Cuts the torus into blocks of chips, one block for each model group.

    Neighbouring blocks are neighbours on the data axis: those along the later axes of the torus,
    in whole rings where the sizes allow it.
    """
    coords = np.array([device.coords for device in devices])
    low = coords.min(axis=0)
    size = coords.max(axis=0) - low + 1
    if len(block) != len(size) or math.prod(block) != shape[2] or np.any(size % np.array(block)):
        raise ConfigError(
            f"config.mesh.model_chips = {block} must hold mesh.model = {shape[2]} chips and divide "
            f"the slice of {'x'.join(map(str, size))} chips along each axis."
        )
    if len(devices) != math.prod(size):
        raise ConfigError(
            f"config.mesh.model_chips needs one device for each chip, and there are {len(devices)} "
            f"on {math.prod(size)} chips."
        )
    torus = np.empty(tuple(size), dtype=object)
    for device, place in zip(devices, coords - low, strict=True):
        torus[tuple(place)] = device
    cut = torus.reshape(
        [n for total, part in zip(size, block, strict=True) for n in (total // part, part)]
    )
    axes = len(size)
    groups = cut.transpose([*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)])
    # The replica axis takes a part of one axis of the torus, so that data has whole rings of the
    # other axes.
    counts, replicas = groups.shape[:axes], shape[0]
    outer = next((i for i, n in enumerate(counts) if n % replicas == 0), None)
    if outer is not None:
        groups = groups.reshape(
            *counts[:outer], replicas, counts[outer] // replicas, *groups.shape[outer + 1 :]
        )
        groups = np.moveaxis(groups, outer, 0)
    ring = _ring(block)
    return groups.reshape(*shape[:2], *block)[(slice(None), slice(None), *ring.T)]


def _ring(block: tuple[int, ...]) -> np.ndarray:
    """Returns the chips of a block as a ring: neighbours in it are neighbours in the block.

    The ring goes through the rows forwards and backwards in turn, without their first column, and
    returns along the first column. All axes after the first form one row. If there is no such ring
    (odd sides), or only one axis (which is a ring of the torus itself), the chips have the order of
    their coordinates.
    """
    axes = sorted(
        (axis for axis, size in enumerate(block) if size > 1), key=lambda axis: block[axis] % 2
    )
    if len(axes) < 2 or block[axes[0]] % 2:
        return np.argwhere(np.ones(block, bool))
    columns: list[tuple[int, ...]] = [()]
    for axis in axes[1:]:
        there = [
            (*column, i)
            for n, column in enumerate(columns)
            for i in range(block[axis])[:: 1 if n % 2 == 0 else -1]
        ]
        columns = there
    rows = range(block[axes[0]])
    order = [
        (row, *column)
        for row in rows
        for column in (columns[1:] if row % 2 == 0 else columns[:0:-1])
    ]
    order += [(row, *columns[0]) for row in reversed(rows)]
    ring = np.zeros((len(order), len(block)), int)
    ring[:, axes] = order
    return ring


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts that the batch is split into, over replica and data."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of every array of a Batch: axis 0 over (replica, data)."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Reader:
    """A process among those that read a batch: reader `index` of `count`."""

    index: int
    count: int


def reader(mesh: Mesh) -> Reader:
    """Returns which part of the batch this process reads.

    Where the model axis runs across processes, several have devices with the same part of the
    batch: they read the same rows.

    Raises:
        ValueError: if this process's devices do not have one even, contiguous part of the batch.
    """
    num_shards, here = num_batch_shards(mesh), set()
    by_shard = mesh.devices.reshape(num_shards, -1)
    for shard in range(num_shards):
        if any(device.process_index == jax.process_index() for device in by_shard[shard]):
            here.add(shard)
    first, size = min(here), len(here)
    if here != set(range(first, first + size)) or num_shards % size or first % size:
        raise ConfigError(
            f"The devices of process {jax.process_index()} hold parts {sorted(here)} of "
            f"{num_shards} of the batch; expected one even, contiguous part. Choose config.mesh so "
            "that the model axis divides the devices of a process, or is divided by them."
        )
    return Reader(first // size, num_shards // size)
