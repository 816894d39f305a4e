"""The training state, made abstract first: eval_shape -> axes -> shardings -> jit(init).

No host ever has a whole tower: each array is made on, or read onto, the devices that keep it.

    TrainState
      step        updates done
      trainable   float32; split over data (ZeRO-1)
      frozen      compute dtype (bfloat16) or 8 bits, from the towers' exports, in the compute form
      opt_state   float32, two moments for each trainable weight; split over data (ZeRO-1)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from flamingo_jax.core import params as params_lib
from flamingo_jax.core import trees
from flamingo_jax.core.precision import Policy
from flamingo_jax.core.trees import Params, T, Tree
from flamingo_jax.models import int8
from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding import zero as zero_lib
from flamingo_jax.sharding.mesh import replicated
from flamingo_jax.training.objective import Objective
from flamingo_jax.training.optimizer import Traits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState(Generic[T]):
    """Everything an update reads and writes.

    TrainState[jax.Array] are its values, TrainState[jax.ShapeDtypeStruct] its shapes,
    TrainState[NamedSharding] its shardings.

    Attributes:
      step: int32 scalar, the updates done.
      trainable: float32 master weights.
      frozen: frozen weights in the compute form (`models.frozen`), in the compute dtype, some of
          them in 8 bits (`models.int8`) if the policy says so.
      opt_state: optax state, sharded like the trainable weights.
    """

    step: T
    trainable: Tree[T]
    frozen: Tree[T]
    opt_state: optax.OptState

    def params(self) -> dict[str, dict[str, T]]:
        """Returns all weights as one tree, frozen ones in the compute form."""
        return trees.merge(self.trainable, self.frozen)

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint stores: all but the frozen towers.

        The checkpoint names the towers' exports by path and hash.
        """
        return {"step": self.step, "trainable": self.trainable, "opt_state": self.opt_state}


class AbstractWeights(NamedTuple):
    """The shapes of an objective's weights, in the form that checkpoints keep, and their axes.

    Attributes:
      trainable: weights that get a gradient, as jax.ShapeDtypeStruct.
      frozen: the others.
      axes: {path: logical axes} of both.
    """

    trainable: Tree[jax.ShapeDtypeStruct]
    frozen: Tree[jax.ShapeDtypeStruct]
    axes: Mapping[str, params_lib.Axes]


class SplitWeights(NamedTuple):
    """A tree of weights in two parts."""

    trainable: dict[str, dict[str, Any]]
    frozen: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Where a state's arrays are on a mesh, and the functions that make them there.

    Attributes:
      abstract: TrainState of jax.ShapeDtypeStruct with shardings.
      shardings: TrainState of shardings.
      gathered: shardings of the trainable weights during an update: not split over data.
      stored_frozen: frozen weights in the form of their exports, as jax.ShapeDtypeStruct with
          shardings.
      read_frozen: the same, with the dtypes in which they are read: float32 for those that are
          rounded to 8 bits.
      rounded: casts and rounds weights as they are read, to what `compute_form` takes; some modules
          of a tower, or all. Their buffers are given up. None if the policy has no 8 bits.
      compute_form: changes frozen weights from that form into `TrainState.frozen`; their buffers
          are given up.
      init_trained: init_trained(rng) -> TrainState without its `frozen` part, which comes from the
          towers' exports.
      init_frozen: init_frozen(rng) -> random frozen weights, where there is no export to load.
    """

    abstract: TrainState[jax.ShapeDtypeStruct]
    shardings: TrainState[NamedSharding]
    gathered: Tree[NamedSharding]
    stored_frozen: Tree[jax.ShapeDtypeStruct]
    read_frozen: Tree[jax.ShapeDtypeStruct]
    rounded: Callable[[Params], Params] | None
    compute_form: Callable[[Tree[jax.Array]], Tree[jax.Array]]
    init_trained: Callable[[jax.Array], TrainState[jax.Array]]
    init_frozen: Callable[[jax.Array], Tree[jax.Array]]

    def init(self, rng: jax.Array) -> TrainState[jax.Array]:
        """Returns the whole state at step 0, all weights random, frozen ones too."""
        return dataclasses.replace(self.init_trained(rng), frozen=self.init_frozen(rng))


def split(objective: Objective, params: Params) -> SplitWeights:
    """Splits all weights into trainable and frozen ones, by the objective's table."""
    rules = objective.rules(trees.flatten(params))
    is_trained = {path: not rule.frozen for path, rule in rules.items()}
    return SplitWeights(*trees.partition(params, is_trained))


def abstract_weights(objective: Objective) -> AbstractWeights:
    """Returns the shapes of all weights, without making any array.

    Raises:
        TableError: if the objective's table does not match each weight exactly once.
    """
    key = params_lib.abstract_key()
    axes = params_lib.axes_of(objective.model.init, key)
    shapes = split(objective, jax.eval_shape(objective.model.init, key))
    return AbstractWeights(*shapes, axes)


def traits(objective: Objective, weights: AbstractWeights) -> Traits:
    """Returns what the optimizer knows of the trainable weights."""
    rules = objective.rules(trees.flatten(weights.trainable), allow_unused=True)
    return Traits(
        decay={path: rule.decay for path, rule in rules.items()},
        group={path: rule.group for path, rule in rules.items()},
        axes={path: weights.axes[path] for path in rules},
    )


def lay_out(
    objective: Objective,
    weights: AbstractWeights,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    policy: Policy,
    *,
    zero: bool = True,
) -> StateLayout:
    """Lays the state out on a mesh, without making any array.

    Args:
        objective: the model and its table.
        weights: their shapes.
        optimizer: of the trainable weights.
        mesh: the device mesh.
        policy: dtypes of the frozen weights.
        zero: True to split float32 weights and the optimizer's state over data (ZeRO-1).

    Raises:
        ValueError: if the mesh does not divide a weight.
    """
    model, axes = objective.model, weights.axes
    contracted = int8.contracted_axes(model.init, policy)

    rounded = functools.partial(int8.rounded_and_cast, contracted=contracted, policy=policy)

    def init_trained(rng: jax.Array) -> TrainState[jax.Array]:
        params = split(objective, model.init(rng)).trainable  # the compiler drops the others
        return TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params))

    def init_frozen(rng: jax.Array) -> Params:
        return model.compute_form(rounded(split(objective, model.init(rng)).frozen))

    # 1. Shapes.
    key = params_lib.abstract_key()
    stored_frozen = jax.eval_shape(policy.cast, weights.frozen)
    rounded_frozen = jax.eval_shape(rounded, weights.frozen)
    abstract = dataclasses.replace(
        jax.eval_shape(init_trained, key), frozen=jax.eval_shape(model.compute_form, rounded_frozen)
    )

    # 2. Shardings.
    gathered = compile_lib.shardings_of(weights.trainable, axes, mesh)
    master = zero_lib.shardings_of(weights.trainable, axes, mesh) if zero else gathered
    computed_axes = params_lib.axes_of(model.compute_form_init, key)
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        master,
        transform_non_params=lambda _: replicated(mesh),
    )
    shardings = TrainState(
        step=replicated(mesh),
        trainable=master,
        frozen=compile_lib.shardings_of(abstract.frozen, computed_axes, mesh),
        opt_state=moments,
    )
    stored_frozen = compile_lib.with_shardings(
        stored_frozen, compile_lib.shardings_of(weights.frozen, axes, mesh)
    )
    rounding = None
    if contracted:
        rounded_shardings = compile_lib.shardings_of(rounded_frozen, axes, mesh)
        rounding = int8.rounding(policy, contracted, rounded_shardings)

    # 3. Compiled functions.
    return StateLayout(
        abstract=compile_lib.with_shardings(abstract, shardings),
        shardings=shardings,
        gathered=gathered,
        stored_frozen=stored_frozen,
        read_frozen=int8.as_read(stored_frozen, contracted),
        rounded=rounding,
        compute_form=compile_lib.jit_giving_up(model.compute_form, shardings.frozen),
        init_trained=compile_lib.jit_once(
            init_trained, dataclasses.replace(shardings, frozen={}), mesh
        ),
        init_frozen=compile_lib.jit_once(init_frozen, shardings.frozen, mesh),
    )
