"""Compilation onto the mesh.

Abstract arrays that know their sharding, checks, ahead-of-time lowering, the compilation cache.

The step that trains is the step that is planned and tested: all of them come through `lower`, which
needs shapes only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core import paths, trees

# Reduce-scatters as they are, not as loops of permutes around the products before them: a model
# group that spans several axes
# of the torus reduces over all of them at once, a loop goes around one ring, and its additions cost
# what the overlap gains.
_TPU_OPTIONS: dict[str, Any] = {"xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false"}


def shardings_of(
    abstract: trees.Params, axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, dict[str, NamedSharding]]:
    """Returns the sharding of each weight of a tree, from its logical axes.

    Args:
        abstract: tree of arrays or jax.ShapeDtypeStruct.
        axes: {path: logical axes}, from `core.params.axes_of`; it may hold other paths too.
        mesh: the device mesh.

    Raises:
        ValueError: if a mesh axis does not divide a dimension that the layout puts on it.
    """
    shardings = {}
    for path, leaf in trees.flatten(abstract).items():
        shardings[path] = NamedSharding(mesh, weight_spec(path, leaf.shape, axes[path], mesh))
    return trees.unflatten(shardings)


def weight_spec(
    path: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh
) -> PartitionSpec:
    """Returns where a weight's dimensions go.

    Key/value heads that are fewer than the chips of a model group are replicated.

    Args:
        path: of the weight, for the message.
        shape: of the weight.
        axes: its logical axes.
        mesh: the device mesh.

    Raises:
        ValueError: if a mesh axis does not divide a dimension that the layout puts on it.
    """
    entries: list[axes_lib.MeshAxes] = []
    for size, word, entry in zip(shape, axes, axes_lib.spec(axes), strict=True):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        parts = math.prod(mesh.shape[name] for name in names)
        if word == "kv_heads" and size < parts:
            entry = None
        elif size % parts:
            raise ValueError(
                f"Weight {path} has {size} of {word!r} in shape {tuple(shape)}, which mesh axis "
                f"{'*'.join(names)} = {parts} does not divide: choose another "
                f"config.mesh.{names[-1]}, or a model size that is a multiple of it."
            )
        entries.append(entry)
    return PartitionSpec(*entries)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the tree of jax.ShapeDtypeStruct with these shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def jit_once(function: Callable[..., Any], out_shardings: Any, mesh: Mesh) -> Callable[..., Any]:
    """Returns the function compiled for a single call, such as an init.

    On a CPU it is not worth optimising (3 times as fast to compile).
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        function,
        out_shardings=out_shardings,
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )


def compiler_options(mesh: Mesh) -> dict[str, Any] | None:
    """Returns the options with which a training step is compiled for the mesh's platform.

    None is the compiler's own.
    """
    return dict(_TPU_OPTIONS) if mesh.devices.flat[0].platform == "tpu" else None


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that a rerun skips compilation.

    The environment variable JAX_COMPILATION_CACHE_DIR does the same.
    """
    jax.config.update("jax_compilation_cache_dir", str(paths.make_directory(directory)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
