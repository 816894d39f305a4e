"""ZeRO-1: the float32 weights and their moments are split over "data".

Each chip updates its part (Rajbhandari et al. 2020; paper, B.1.2).

    gradient (bf16, whole)  --reduce-scatter-->  part  --clip, AdamW-->  part of float32 weights  --cast, all-gather--> bf16 weights, whole

Once per update bf16 weights are gathered, and once per dataset gradients are reduced: what an
all-reduce costs, in two halves.
"""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import trees
from flamingo_jax.sharding.compile import weight_spec


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns where the optimizer keeps a weight.

    As the model has it, and split over "data" beside.

    The largest dimension that "data" divides and that is not split already is split; never
    "layers", so that the part of a layer is the same inside the scan over layers. A weight that is
    not split over "model" is split over that too, along another dimension. A weight with no such
    dimension (a gate) stays as it is: it is small.

    Args:
        axes: logical axes.
        shape: of the weight; with or without a leading "layers".
        mesh: the device mesh.
    """
    entries = list(weight_spec("", shape, axes, mesh))
    for name in ("data", "model"):
        if mesh.shape[name] == 1 or name in entries:
            continue
        free = [
            i
            for i, axis in enumerate(axes)
            if entries[i] is None and axis != "layers" and shape[i] % mesh.shape[name] == 0
        ]
        if free:
            entries[max(free, key=lambda i: shape[i])] = name
    return PartitionSpec(*entries)


def shardings_of(
    abstract: trees.Params, axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, dict[str, NamedSharding]]:
    """Returns the sharding of each master weight.

    Arguments and errors as in `compile.shardings_of`.
    """
    flat = trees.flatten(abstract)
    return trees.unflatten(
        {
            path: NamedSharding(mesh, spec(axes[path], leaf.shape, mesh))
            for path, leaf in flat.items()
        }
    )
