"""Where weights, prompts and caches lie on a mesh while prompts are answered.

    weights    split over "model" as in training (core/axes.RULES), whole over replica and data
    prompts    rows over (replica, data)
    images     over all devices: none is encoded twice
    caches     rows over (replica, data), heads over "model"

The same programs run on one device and on a mesh: a `Layout` around the trace is all that differs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import params as params_lib
from flamingo_jax.core import stack, trees
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.config import ConfigError
from flamingo_jax.models.api import Model
from flamingo_jax.models.cache import Cache
from flamingo_jax.sharding import compile as compile_lib


def shardings(
    model: Model, abstract: trees.Params, mesh: Mesh
) -> dict[str, dict[str, NamedSharding]]:
    """Returns where each weight goes; nothing is computed.

    Args:
        model: the model's pure functions.
        abstract: its weights, arrays or shapes.
        mesh: the devices.

    Raises:
        ConfigError: the model axis does not divide a dimension that is split over it.
    """
    try:
        return compile_lib.shardings_of(abstract, _axes(model), mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def weights(model: Model, params: trees.Params, mesh: Mesh) -> trees.Params:
    """Puts weights where `shardings` says.

    Those that lie on this mesh already, as in training, stay as they are.

    Args:
        model: the model's pure functions.
        params: its weights; each process has all of them, or they lie on the mesh.
        mesh: the devices.

    Raises:
        ConfigError: as `shardings`.
    """
    devices = set(mesh.devices.flat)
    if all(
        isinstance(x, jax.Array) and x.sharding.device_set == devices
        for x in jax.tree.leaves(params)
    ):
        return params

    def place(weight: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(weight)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, params, shardings(model, params, mesh))


def unrolled(model: Model, params: trees.Params) -> trees.Params:
    """Returns a model's weights with each layer's apart (`core.stack.unrolled`), where they lie."""
    return stack.unrolled_weights(params, _axes(model))


def _axes(model: Model) -> dict[str, tuple[str | None, ...]]:
    return params_lib.axes_of(model.compute_form_init, jax.eval_shape(lambda: jax.random.key(0)))


def put(array: np.ndarray, mesh: Mesh | None, axes: tuple[str, ...]) -> jax.Array:
    """Puts an array, which every process has, on the devices, its first axis split over mesh `axes`; without a mesh on the default one."""
    if mesh is None:
        return jnp.asarray(array)
    sharding = NamedSharding(mesh, PartitionSpec(axes or None))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(tree: Any) -> Any:
    """Returns device arrays as numpy, in every process.

    What lies on other hosts too is gathered.
    """
    return jax.tree.map(
        lambda x: (
            np.asarray(x)
            if x.is_fully_addressable
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )


def num_shards(mesh: Mesh | None, axes: tuple[str, ...]) -> int:
    """Returns over how many devices something is split that is split over mesh `axes`."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


def spread_cache(cache: Cache) -> Cache:
    """Returns a cache with its rows over the batch axes and its heads over "model", inside `with_layout`; else as it is."""

    def place(path: Any, leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        if name == "relative":
            return constrain(leaf, "layers", None, "heads", "head_dim")
        # [layers, B, ..., H, K]; the convolution's raw channels have none
        has_heads = name in ("key", "value")
        middle = (None,) * (leaf.ndim - (4 if has_heads else 2))
        return constrain(
            leaf, "layers", "batch", *middle, *(("kv_heads", "head_dim") if has_heads else ())
        )

    return jax.tree_util.tree_map_with_path(place, cache)
