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
from flamingo_jax.core.finite import NonFiniteError, finite
from flamingo_jax.core.notation import Array
from flamingo_jax.core.precision import dtype_of
from flamingo_jax.models.api import Model
from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh


class Compiled:
    """Weights on their devices, and the functions that are compiled for them.

    A function is compiled once for each shape of its inputs, even if several `Compiled` share it.
    What it returns is raw: padded rows may hold anything. Numbers of real rows pass `finite`.

    Attributes:
        params: the weights, on their devices.
        mesh: the devices; None = one.
        name: what messages call the model.
    """

    def __init__(self, params: trees.Params, mesh: Mesh | None, *, name: str = "") -> None:
        """Takes weights that are on their devices (`split_over_model`, `whole_on_each_device`).

        Args:
            params: the weights.
            mesh: the devices; None = one.
            name: the checkpoint that they are from, for messages; "" = it has no name.
        """
        self.params, self.mesh = params, mesh
        self.name = f"the model {name}" if name else "the model"
        self._layout = Layout(mesh or make_mesh(MeshConfig(), jax.devices()[:1]))

    def __call__(self, function: Callable[..., Any], *inputs: Any, **static: Hashable) -> Any:
        """Returns function(params, *inputs, **static) as numpy arrays, in every process.

        Args:
            function: a method of a model, or a function of a module; not a lambda, which would be
                compiled in each call.
            *inputs: trees of arrays on the devices, from `put`.
            **static: what is compiled in.
        """
        return fetch(self.on_devices(function, *inputs, **static))

    def on_devices(self, function: Callable[..., Any], *inputs: Any, **static: Hashable) -> Any:
        """Returns the same, as arrays that stay on the devices."""
        named = tuple(sorted(static.items()))
        return _run(function, self._layout, named, self.params, *inputs)

    def in_place(
        self, function: Callable[..., Any], state: Any, *inputs: Any, **static: Any
    ) -> Any:
        """Returns function(params, state, *inputs, **static); it may use the memory of `state`."""
        named = tuple(sorted(static.items()))
        return _run_in_place(function, self._layout, named, self.params, state, *inputs)

    def finite(self, values: np.ndarray, what: str) -> np.ndarray:
        """Returns numbers of the model, if all are finite.

        Every process calls it with the same numbers.

        Args:
            values: the numbers; the first axis counts rows.
            what: what they are, in the plural, such as "features of images".

        Raises:
            NonFiniteError: a number is NaN or infinite. The message has the model, its weights that
                are not finite, and what to do.
        """
        return finite(values, f"{what} of {self.name}", why=self._why_not_finite)

    def check_weights(self) -> None:
        """Checks all weights, once before a long evaluation; `finite` checks what they give.

        A gate of infinity gives finite numbers: its tanh is 1.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        if bad := _non_finite(self.params):
            raise NonFiniteError(f"Weights of {self.name} are not finite: {_broken(bad)}")

    def _why_not_finite(self) -> str:
        if bad := _non_finite(self.params):
            return f"These weights are not finite: {_broken(bad)}"
        dtype = dtype_of(self.params)
        wider = "set config.inference.compute=float32, or " if dtype != jnp.float32 else ""
        return (
            f"All weights are finite, so a number became too large in {dtype}: {wider}take another "
            "checkpoint."
        )

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


def _non_finite(params: trees.Params) -> list[str]:
    """Returns the paths of the weights that hold NaN or infinity.

    All processes call it together. No weight leaves its device.
    """
    flat = trees.flatten(params)
    return [
        path
        for path, is_finite in zip(flat, np.asarray(_are_finite(tuple(flat.values()))), strict=True)
        if not is_finite
    ]


@jax.jit
def _are_finite(weights: tuple[Any, ...]) -> Array:
    """True for each weight of finite numbers; a weight may be a tree (`core.stack.Layers`)."""
    return jnp.stack(
        [
            jnp.all(jnp.stack([_is_finite(leaf) for leaf in jax.tree.leaves(weight)]))
            for weight in weights
        ]
    )


def _is_finite(weight: Array) -> Array:
    if jnp.issubdtype(weight.dtype, jnp.integer):  # the scale of such a weight may be infinite
        return jnp.bool_(True)  # noqa: FBT003
    # By the bits, where all exponents of NaN and infinity are ones. A maximum may lose a NaN: with
    # an initial value it does so on a CPU, for arrays of a few thousand numbers.
    bits = jnp.dtype(f"uint{8 * weight.dtype.itemsize}")
    exponent = np.asarray(np.inf, weight.dtype).view(bits)
    found = jax.lax.bitcast_convert_type(weight, bits) & exponent
    return ~jnp.any(found == exponent)


def _broken(weights: list[str]) -> str:
    """Names the first of the broken weights, and says what to do."""
    more = f" and {len(weights) - 3} more" if len(weights) > 3 else ""
    return (
        f"{', '.join(weights[:3])}{more}. Take an earlier checkpoint, or train or convert it again."
    )


@functools.partial(jax.jit, static_argnames=("function", "layout", "static"))
def _run(
    function: Callable[..., Any],
    layout: Layout,
    static: tuple[tuple[str, Hashable], ...],
    params: trees.Params,
    *inputs: Any,
) -> Any:
    with with_layout(layout):
        return function(params, *inputs, **dict(static))


@functools.partial(
    jax.jit, static_argnames=("function", "layout", "static"), donate_argnames="state"
)
def _run_in_place(
    function: Callable[..., Any],
    layout: Layout,
    static: tuple[tuple[str, Hashable], ...],
    params: trees.Params,
    state: Any,
    *inputs: Any,
) -> Any:
    with with_layout(layout):
        return function(params, state, *inputs, **dict(static))


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


def shardings(model: Model, abstract: trees.Params, mesh: Mesh) -> dict[str, dict[str, Any]]:
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
    return params_lib.axes_of(model.compute_form_init, params_lib.abstract_key())
