"""One update.

Cast and gather once, accumulate over the datasets, one clip, one AdamW (paper, section 2.4 and
B.1.2).

    trainable f32 (a part) --cast--> compute dtype --gather--> whole --+
    frozen (compute dtype) --------------------------------------------+--> loss_m(batch_m) --> gradient --reduce-scatter--> a part
    a part of each gradient * lambda_m --sum f32--> clip --> AdamW --> trainable f32 (a part)

A part is what ZeRO-1 leaves to one position on the mesh's data axis (`sharding.zero`); without
ZeRO-1 it is the whole. The gradient is taken by the trainable weights alone, so that no gradient of
a frozen weight is ever formed. This is the step that trains, the step that is planned ahead of time
and the step that the tests run on eight devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from flamingo_jax.core import trees
from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.notation import Array
from flamingo_jax.core.precision import Policy
from flamingo_jax.sharding.compile import compiler_options
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import batch_sharding, replicated
from flamingo_jax.training.datasets_per_step import accumulate
from flamingo_jax.training.objective import Metrics, Objective
from flamingo_jax.training.state import StateLayout, TrainState

Gather = Callable[[trees.Params], trees.Params]
Step = Callable[
    [TrainState[Array], Mapping[str, Any], jax.Array], tuple[TrainState[Array], Metrics]
]


def update(
    state: TrainState[Array],
    batches: Mapping[str, Any],
    rng: jax.Array,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedules: Mapping[str, optax.Schedule],
    weights: Mapping[str, float],
    policy: Policy,
    gather: Gather = lambda params: params,
) -> tuple[TrainState[Array], Metrics]:
    """Does one update; pure.

    Args:
        state: before the update.
        batches: {dataset: batch}.
        rng: key of the run; the key of this update is fold_in(rng, state.step).
        objective: what is minimised.
        optimizer: from the gradient sum to the updates.
        schedules: the learning rates by their names in the log (`optimizer.make_schedules`).
        weights: {dataset: lambda_m}.
        policy: the compute dtype.
        gather: makes the cast weights whole, before the first dataset.

    Returns:
        (state after, metrics): "loss", "<dataset>/loss", "gradient_norm" (before the clip), the
        learning rates, the objective's gauges; all of them belong to the weights before the update.
    """

    def loss(trainable: trees.Params, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return objective.loss(trees.merge(trainable, state.frozen), batch, key)

    key = jax.random.fold_in(rng, state.step)
    with jax.named_scope("optimizer"):
        trainable = gather(policy.cast(state.trainable))
    gradients, metrics = accumulate(loss, trainable, batches, weights, key)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        after = optax.apply_updates(state.trainable, updates)
    metrics |= {
        "gradient_norm": optax.tree.norm(gradients),
        **{name: schedule(state.step) for name, schedule in schedules.items()},
        **objective.gauges(state.trainable),
    }
    return dataclasses.replace(
        state, step=state.step + 1, trainable=after, opt_state=opt_state
    ), metrics


def make_step(state: StateLayout, layout: Layout, **parts: Any) -> Step:
    """Compiles `update` onto the mesh.

    The state that goes in is given up (its buffers become the new state's).

    Args:
        state: where its arrays are.
        layout: of activations and gradients; batches arrive split over (replica, data) of its mesh,
            metrics leave replicated.
        **parts: the keyword arguments of `update`, but `gather`.
    """
    mesh = layout.mesh

    def gather(params: trees.Params) -> trees.Params:
        # cast first: half the bytes
        part = jax.lax.with_sharding_constraint(params, state.shardings.trainable)
        return jax.lax.with_sharding_constraint(part, state.gathered)

    def step(
        before: TrainState[Array], batches: Mapping[str, Any], rng: jax.Array
    ) -> tuple[TrainState[Array], Metrics]:
        with with_layout(layout):
            return update(before, batches, rng, **parts, gather=gather)

    return jax.jit(
        step,
        in_shardings=(state.shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(state.shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
