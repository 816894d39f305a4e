"""Compilation onto the mesh: abstract arrays that know their sharding, checks, ahead-of-time lowering, the compilation cache.

The step that trains is the step that is planned and tested: all of them come through `lower`, which needs shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core import paths, trees


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
        partition = axes_lib.spec(axes[path])
        _check_divisible(path, leaf.shape, axes[path], partition, mesh)
        shardings[path] = NamedSharding(mesh, partition)
    return trees.unflatten(shardings)


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns the tree of jax.ShapeDtypeStruct with these shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


def jit_once(function: Callable[..., Any], out_shardings: Any, mesh: Mesh) -> Callable[..., Any]:
    """Returns the function compiled for a single call, such as an init: on a CPU it is not worth optimising (3 times as fast to compile)."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        function,
        out_shardings=out_shardings,
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that a rerun skips compilation (also: env JAX_COMPILATION_CACHE_DIR)."""
    jax.config.update("jax_compilation_cache_dir", str(paths.make_directory(directory)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _check_divisible(
    path: str, shape: tuple[int, ...], logical: tuple[str | None, ...], partition: PartitionSpec, mesh: Mesh
) -> None:
    for size, word, entry in zip(shape, logical, partition, strict=True):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        parts = 1
        for name in names:
            parts *= mesh.shape[name]
        if size % parts:
            raise ValueError(
                f"Weight {path} has {size} of {word!r} in shape {tuple(shape)}, which mesh axis {'*'.join(names)} = {parts} does not divide: "
                f"choose another config.mesh.{names[-1]}, or a model size that is a multiple of it."
            )
