"""One update: cast once, accumulate over the datasets, one clip, one AdamW (paper, section 2.4 and B.1.2).

    trainable f32 --cast--> compute dtype --+
    frozen (compute dtype) -----------------+--> loss_m(batch_m) --> gradient * lambda_m --sum f32--> clip --> AdamW --> trainable f32

The gradient is taken by the trainable weights alone, so that no gradient of a frozen weight is ever formed. This is the step that
trains, the step that is planned ahead of time and the step that the tests run on eight devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from flamingo_jax.core import trees
from flamingo_jax.core.precision import Policy
from flamingo_jax.sharding.mesh import batch_sharding, replicated
from flamingo_jax.training.accumulate import accumulate
from flamingo_jax.training.objective import Metrics, Objective
from flamingo_jax.training.state import TrainState

Step = Callable[[TrainState, Mapping[str, Any], jax.Array], tuple[TrainState, Metrics]]


def update(
    state: TrainState,
    batches: Mapping[str, Any],
    rng: jax.Array,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    weights: Mapping[str, float],
    policy: Policy,
) -> tuple[TrainState, Metrics]:
    """Does one update; pure.

    Args:
        state: before the update.
        batches: {dataset: batch}.
        rng: key of the run; the key of this update is fold_in(rng, state.step).
        objective: what is minimised.
        optimizer: from the gradient sum to the updates.
        schedule: the learning rate, for the log.
        weights: {dataset: lambda_m}.
        policy: the compute dtype.

    Returns:
        (state after, metrics): "loss", "<dataset>/loss", "gradient_norm" (before the clip), "learning_rate", the objective's gauges;
        all of them belong to the weights before the update.
    """

    def loss(trainable: trees.Params, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return objective.loss(trees.merge(trainable, state.frozen), batch, key)

    key = jax.random.fold_in(rng, state.step)
    gradients, metrics = accumulate(loss, policy.cast(state.trainable), batches, weights, key)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    metrics |= {
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": schedule(state.step),
        **objective.gauges(state.trainable),
    }
    after = dataclasses.replace(
        state, step=state.step + 1, trainable=optax.apply_updates(state.trainable, updates), opt_state=opt_state
    )
    return after, metrics


def make_step(mesh: Mesh, shardings: TrainState, **parts: Any) -> Step:
    """Compiles `update` onto the mesh; the state that goes in is given up (its buffers become the new state's).

    Args:
        mesh: the device mesh; batches arrive split over (replica, data), metrics leave replicated.
        shardings: of the state.
        **parts: the keyword arguments of `update`.
    """

    def step(state: TrainState, batches: Mapping[str, Any], rng: jax.Array) -> tuple[TrainState, Metrics]:
        return update(state, batches, rng, **parts)

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
