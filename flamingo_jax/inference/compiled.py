"""`Compiled`: a model with its weights on its devices. Inference runs a model only through it.

    weights    split over "model" as in training (core/axes.RULES), whole over replica and data
    prompts    rows over (replica, data)
    visuals    over all devices: no visual is encoded twice
    caches     rows over (replica, data), heads over "model" (`models.cache.logical_axes`)

The same functions run on one device and on a mesh: a `Layout` around the trace is all that differs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core import params as params_lib
from flamingo_jax.core import stack, trees
from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.config import ConfigError
from flamingo_jax.models.api import Model
from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding.layout import Layout


class Compiled:
    """Weights on their devices, and the functions that are compiled for them.

    A function is compiled once for each shape of its inputs, even if several `Compiled` share it.

    Attributes:
        params: the weights, on their devices.
        mesh: the devices; None = one.
    """

    def __init__(self, params: trees.Params, mesh: Mesh | None) -> None:
        """Takes weights that are on their devices (`split_over_model`, `whole_on_each_device`)."""
        self.params, self.mesh = params, mesh
        self._layout = None if mesh is None else Layout(mesh)

    def __call__(self, function: Callable[..., Any], *inputs: Any, **static: Hashable) -> Any:
        """Returns function(params, *inputs, **static) as numpy arrays, in every process.

        Args:
            function: a method of a model, or a function of a module; not a lambda, which would be
                compiled in each call.
            *inputs: trees of arrays on the devices, from `put`.
            **static: what is compiled in.
        """
        named = tuple(sorted(static.items()))
        return fetch(_run(function, self._layout, named, self.params, *inputs))

    def put(self, tree: Any, axes: tuple[str, ...]) -> Any:
        """Puts numpy arrays, which every process has, on the devices.

        Args:
            tree: of arrays.
            axes: mesh axes over which the first axis of each array is split; () = whole on each
                device.
        """
        return jax.tree.map(lambda array: _put(array, self.mesh, axes), tree)

    def num_shards(self, axes: tuple[str, ...]) -> int:
        """Returns the number of parts of an array that is split over mesh `axes`."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in axes)


@functools.partial(jax.jit, static_argnames=("function", "layout", "static"))
def _run(
    function: Callable[..., Any],
    layout: Layout | None,
    static: tuple[tuple[str, Hashable], ...],
    params: trees.Params,
    *inputs: Any,
) -> Any:
    with with_layout(layout):
        return function(params, *inputs, **dict(static))


def _put(array: np.ndarray, mesh: Mesh | None, axes: tuple[str, ...]) -> jax.Array:
    if mesh is None:
        return jnp.asarray(array)
    sharding = NamedSharding(mesh, PartitionSpec(axes or None))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(tree: Any) -> Any:
    """Returns device arrays as numpy, in every process; parts on other hosts are gathered."""
    return jax.tree.map(
        lambda x: (
            np.asarray(x)
            if x.is_fully_addressable
            else multihost_utils.process_allgather(x, tiled=True)
        ),
        tree,
    )


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


def split_over_model(model: Model, params: trees.Params, mesh: Mesh | None) -> trees.Params:
    """Puts weights where `shardings` says; without a mesh, leaves them as they are.

    Weights that are on this mesh already, as in training, stay as they are.

    Args:
        model: the model's pure functions.
        params: its weights; each process has all of them, or they are on the mesh.
        mesh: the devices.

    Raises:
        ConfigError: as `shardings`.
    """
    if mesh is None:
        return params
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


def whole_on_each_device(params: trees.Params, mesh: Mesh | None) -> trees.Params:
    """Puts all weights on each device of a mesh; without a mesh, leaves them as they are."""
    if mesh is None:
        return params
    return jax.tree.map(lambda weight: _put(np.asarray(weight), mesh, ()), params)


def unrolled(model: Model, params: trees.Params) -> trees.Params:
    """Returns the weights with one array for each layer (`core.stack.unrolled`), where they are."""
    return stack.unrolled_weights(params, _axes(model))


def _axes(model: Model) -> dict[str, tuple[str | None, ...]]:
    return params_lib.axes_of(model.compute_form_init, jax.eval_shape(lambda: jax.random.key(0)))
