"""The training state, made abstract first: eval_shape -> axes -> shardings -> jit(init).

No tower exists unsharded on a host.

TrainState(step, trainable, frozen, opt_state)
|     float32    |       float32, two moments for each trainable weight and none for frozen ones; both split over data (ZeRO-1)
updates done     compute dtype (bfloat16), from the towers' exports, in the form that is fastest to compute with
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flamingo_jax.core import params as params_lib
from flamingo_jax.core import trees
from flamingo_jax.core.precision import Policy
from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding import zero as zero_lib
from flamingo_jax.sharding.mesh import replicated
from flamingo_jax.training.objective import Objective
from flamingo_jax.training.optimizer import Traits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything an update reads and writes.

    Attributes:
      step: int32 scalar, the updates done.
      trainable: float32 master weights.
      frozen: frozen weights in the compute dtype and the compute form (`Objective.compute_form`).
      opt_state: optax state, sharded like the trainable weights.
    """

    step: Any
    trainable: Any
    frozen: Any
    opt_state: Any

    def params(self) -> dict[str, dict[str, Any]]:
        """Returns all weights as one tree, frozen ones in the compute form."""
        return trees.merge(self.trainable, self.frozen)

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint holds.

        Frozen towers stay where they were exported, and are named by path and hash.
        """
        return {"step": self.step, "trainable": self.trainable, "opt_state": self.opt_state}


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """How a state is laid out.

    Its abstract form, and the functions that make its parts on the mesh.

    Attributes:
      abstract: TrainState of jax.ShapeDtypeStruct with shardings.
      shardings: TrainState of shardings.
      gathered: shardings of the trainable weights while they are computed with: whole over data.
      kept: frozen weights as checkpoints keep them, as jax.ShapeDtypeStruct with shardings.
      compute_form: frozen weights as they are kept -> `TrainState.frozen`; gives up its argument.
      init_trained: init_trained(rng) -> TrainState with an empty `frozen` part, which comes from
          the towers' exports.
      init_frozen: init_frozen(rng) -> frozen weights at random, where there is no export to load.
    """

    abstract: TrainState
    shardings: TrainState
    gathered: Any
    kept: Any
    compute_form: Callable[[Any], Any]
    init_trained: Callable[[jax.Array], TrainState]
    init_frozen: Callable[[jax.Array], Any]

    def init(self, rng: jax.Array) -> TrainState:
        """Returns the whole state at step 0, frozen weights included, all at random."""
        return dataclasses.replace(self.init_trained(rng), frozen=self.init_frozen(rng))


def split(
    objective: Objective, params: trees.Params
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Splits all weights into (trainable, frozen) by the objective's table."""
    is_frozen = trees.match_once(
        trees.flatten(params), objective.frozen, what=f"frozen weights ({objective.name})"
    )
    return trees.partition(params, {path: not frozen for path, frozen in is_frozen.items()})


def decay_factors(objective: Objective, trainable: trees.Params) -> dict[str, dict[str, float]]:
    """Returns each trainable weight's share of the weight decay, by the objective's table."""
    factors = trees.match_once(
        trees.flatten(trainable), objective.decay, what=f"weight decay ({objective.name})"
    )
    return trees.unflatten({path: float(factor) for path, factor in factors.items()})


def traits(
    objective: Objective, trainable: trees.Params, axes: Mapping[str, params_lib.Axes]
) -> Traits:
    """Returns what the optimizer knows of the trainable weights, by the objective's tables and the weights' logical axes."""
    flat = trees.flatten(trainable)
    return Traits(
        decay=trees.flatten(decay_factors(objective, trainable)),
        group=trees.match_once(flat, objective.groups, what=f"optimizer groups ({objective.name})"),
        axes={path: axes[path] for path in flat},
    )


def plan_state(
    objective: Objective,
    make_optimizer: Callable[[Traits], optax.GradientTransformation],
    mesh: Mesh,
    policy: Policy,
    *,
    zero: bool = True,
) -> tuple[StateLayout, optax.GradientTransformation]:
    """Lays the state out without making any array.

    Args:
        objective: whose weights.
        make_optimizer: make_optimizer(traits of the trainable weights) -> optimizer.
        mesh: the device mesh.
        policy: dtype of the frozen weights.
        zero: whether the optimizer's state is split over data (ZeRO-1).

    Returns:
        (plan, optimizer).

    Raises:
        TableError: if a table of the objective does not match each weight exactly once.
        ValueError: if the mesh does not divide a weight.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    axes = params_lib.axes_of(objective.init, key)
    trainable, frozen = split(objective, jax.eval_shape(objective.init, key))
    optimizer = make_optimizer(traits(objective, trainable, axes))

    def trained(rng: jax.Array) -> TrainState:
        weights = split(objective, objective.init(rng))[0]  # what is not returned is not computed
        return TrainState(jnp.zeros((), jnp.int32), weights, {}, optimizer.init(weights))

    def towers(rng: jax.Array) -> Any:
        return objective.compute_form(policy.cast(split(objective, objective.init(rng))[1]))

    computed = (
        params_lib.axes_of(objective.compute_form_init, key)
        if objective.compute_form_init
        else axes
    )
    kept = jax.eval_shape(policy.cast, frozen)
    abstract = dataclasses.replace(
        jax.eval_shape(trained, key), frozen=jax.eval_shape(objective.compute_form, kept)
    )
    gathered = compile_lib.shardings_of(trainable, axes, mesh)
    master = zero_lib.shardings_of(trainable, axes, mesh) if zero else gathered
    shardings = TrainState(
        step=replicated(mesh),
        trainable=master,
        frozen=compile_lib.shardings_of(abstract.frozen, computed, mesh),
        opt_state=optax.tree_map_params(
            optimizer,
            lambda _, s: s,
            abstract.opt_state,
            master,
            transform_non_params=lambda _: replicated(mesh),
        ),
    )
    plan = StateLayout(
        abstract=compile_lib.with_shardings(abstract, shardings),
        shardings=shardings,
        gathered=gathered,
        kept=compile_lib.with_shardings(kept, compile_lib.shardings_of(frozen, axes, mesh)),
        compute_form=_giving_up(objective.compute_form, shardings.frozen),
        init_trained=compile_lib.jit_once(trained, dataclasses.replace(shardings, frozen={}), mesh),
        init_frozen=compile_lib.jit_once(towers, shardings.frozen, mesh),
    )
    return plan, optimizer


def _giving_up(change: Callable[[Any], Any], shardings: Any) -> Callable[[Any], Any]:
    """Compiles a function whose argument is given up.

    JAX warns that what is put together has no buffer of its size to take over.
    """
    compiled = jax.jit(change, out_shardings=shardings, donate_argnums=0)

    def run(kept: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            return compiled(kept)

    return run
