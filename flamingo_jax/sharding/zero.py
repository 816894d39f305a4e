"""ZeRO-1: the float32 weights and their moments are split over "data" (paper, B.1.2).

Each chip updates its part (Rajbhandari et al. 2020).

    gradient, bf16, whole --reduce-scatter--> part --clip, AdamW--> part of the float32 weights
                                                                      |
                          bf16 weights, whole <--cast, all-gather-----+

bf16 weights are gathered once per update, gradients are reduced once per dataset: together the cost
of an all-reduce.
"""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import trees
from flamingo_jax.sharding.compile import weight_spec


def spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the mesh axes of a float32 weight's dimensions: as in the model, and over "data".

    "data" splits the largest dimension that it divides and that is not split yet. It never splits
    "layers", so that the part of a layer is the same inside the scan over layers. If "model" does
    not split the weight, it then splits another dimension in the same way. A weight without such a
    dimension (a gate) is small, and is not split.

    Args:
        axes: logical axes of the weight.
        shape: of the weight, with or without a leading "layers".
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
    """Returns the sharding of each float32 weight; see `compile.shardings_of`."""
    shardings = {}
    for path, leaf in trees.flatten(abstract).items():
        shardings[path] = NamedSharding(mesh, spec(axes[path], leaf.shape, mesh))
    return trees.unflatten(shardings)
