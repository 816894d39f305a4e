"""How the weights of a checkpoint are read: dtypes, devices, and the rounding to 8 bits."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from flamingo_jax.checkpoint.arrays import Change
from flamingo_jax.checkpoint.export import Placement
from flamingo_jax.core import trees
from flamingo_jax.core.precision import arrays_of
from flamingo_jax.inference import compiled
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.models import int8
from flamingo_jax.models.api import Model


def of_weights(
    model: Model,
    abstract: trees.Params,
    config: InferenceConfig,
    mesh: Mesh | None,
    contracted: int8.Contracted,
) -> Placement | None:
    """Returns how `open_checkpoint` reads each weight: its dtype, and where it is on the mesh.

    Args:
        model: the model's pure functions.
        abstract: its weights as stored.
        config: has the dtypes.
        mesh: the devices; None = one.
        contracted: the weights that are rounded to 8 bits (`int8.contracted_axes`).

    Returns:
        None to read all weights as they are stored, on one device.
    """
    if mesh is None and not contracted:
        return None
    shardings = {}
    if mesh is not None:
        shardings = arrays_of(trees.flatten(compiled.shardings(model, abstract, mesh)))
    low = jax.eval_shape(config.policy.cast, abstract)
    read = arrays_of(trees.flatten(int8.as_read(low, contracted)))

    def place(path: str, stored: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return stored.update(dtype=read[path].dtype, sharding=shardings.get(path))

    return place


def rounding(
    model: Model,
    abstract: trees.Params,
    config: InferenceConfig,
    mesh: Mesh | None,
    contracted: int8.Contracted,
) -> Change | None:
    """Returns what changes weights after they are read; arguments as for `of_weights`.

    None changes nothing.
    """
    if not contracted:
        return None
    if mesh is None:
        return int8.rounding(config.policy, contracted)
    change = lambda params: int8.rounded_and_cast(params, contracted, config.policy)
    made = jax.eval_shape(change, abstract)
    return int8.rounding(config.policy, contracted, compiled.shardings(model, made, mesh))
