"""Compilation onto the mesh: shardings of weights, compiler options, the compilation cache.

Shapes with shardings are enough to compile, so the step that trains is also the step that is
planned ahead of time and tested.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.precision import Int8Weight

# Keeps reduce-scatters as they are, instead of loops of permutes around the matrix products before
# them. Where a model group spans several axes of the torus, a reduce-scatter uses all of them at
# once; a loop uses one ring, and its additions cost as much as the overlap saves.
_TPU_OPTIONS: dict[str, Any] = {"xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false"}

# Gathers and all-to-alls run while other instructions compute. By default they do not.
_TPU_OVERLAP: dict[str, Any] = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_all_to_all": "true",
}


def shardings_of(
    abstract: trees.Params, axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, dict[str, Any]]:
    """Returns the NamedSharding of each weight of a tree, from its logical axes.

    A weight in 8 bits has an `Int8Weight` of two: its scales are split as its output channels.

    Args:
        abstract: tree of arrays or jax.ShapeDtypeStruct.
        axes: {path: logical axes}, from `core.params.axes_of`; it may have other paths too.
        mesh: the device mesh.

    Raises:
        ValueError: if a mesh axis does not divide a dimension that is split over it.
    """
    shardings: dict[str, Any] = {}
    for path, leaf in trees.flatten(abstract).items():
        spec = weight_spec(path, leaf.shape, axes[path], mesh)
        shardings[path] = whole = NamedSharding(mesh, spec)
        if isinstance(leaf, Int8Weight):
            scale = NamedSharding(mesh, scale_spec(leaf, spec))
            shardings[path] = Int8Weight(whole, scale, leaf.dtype)
    return trees.unflatten(shardings)


def weight_spec(
    path: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh
) -> PartitionSpec:
    """Returns the mesh axis of each dimension of a weight.

    Key/value heads are replicated if there are fewer of them than chips of a model group.

    Args:
        path: of the weight, for the message.
        shape: of the weight.
        axes: logical axes of the weight.
        mesh: the device mesh.

    Raises:
        ValueError: if a mesh axis does not divide a dimension that is split over it.
    """
    entries: list[axes_lib.MeshAxes] = []
    for size, word, entry in zip(shape, axes, axes_lib.spec(axes), strict=True):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        parts = math.prod(mesh.shape[name] for name in names)
        if word == "kv_heads" and size < parts:
            entry = None
        elif size % parts:
            raise ConfigError(
                f"Weight {path} has {size} of {word!r} in shape {tuple(shape)}, which mesh axis "
                f"{'*'.join(names)} = {parts} does not divide: choose another "
                f"config.mesh.{names[-1]}, or a model size that is a multiple of it."
            )
        entries.append(entry)
    return PartitionSpec(*entries)


def scale_spec(w: Int8Weight, spec: PartitionSpec) -> PartitionSpec:
    """Returns the mesh axes of the scales of a weight in 8 bits, which has `spec`."""
    sizes = zip(w.scale.shape, spec, strict=True)
    return PartitionSpec(*(None if size == 1 else entry for size, entry in sizes))


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """Returns a tree of jax.ShapeDtypeStruct with shapes of one tree and shardings of another."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def jit_once(function: Callable[..., Any], out_shardings: Any, mesh: Mesh) -> Callable[..., Any]:
    """Jits a function that is called once, such as an init.

    On a CPU the compiler's optimisation is off, which makes compilation 3 times as fast.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        function,
        out_shardings=out_shardings,
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )


def jit_giving_up(change: Callable[[Any], Any], out_shardings: Any = None) -> Callable[[Any], Any]:
    """Jits a function that may reuse the buffers of its argument.

    JAX warns of buffers that no output can reuse, since no output has their size.
    """
    compiled = jax.jit(change, out_shardings=out_shardings, donate_argnums=0)

    def run(params: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            return compiled(params)

    return run


def compiler_options(mesh: Mesh, *, overlap: bool = False) -> dict[str, Any] | None:
    """Returns the compiler options of a step on the mesh's platform.

    None uses the compiler's defaults.

    Args:
        mesh: the device mesh.
        overlap: True to run collectives while other instructions compute.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return None
    return _TPU_OPTIONS | (_TPU_OVERLAP if overlap else {})


def use_compilation_cache(directory: str) -> None:
    """Stores compiled programs in `directory`, so that a rerun skips compilation.

    The environment variable JAX_COMPILATION_CACHE_DIR does the same.
    """
    jax.config.update("jax_compilation_cache_dir", str(paths.make_directory(directory)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
