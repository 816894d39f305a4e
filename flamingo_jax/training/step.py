"""One update: cast, gather, accumulate over the datasets, clip, AdamW (paper, 2.4 and B.1.2).

    trainable, float32, a part --cast--> compute dtype --gather--> whole --+
    frozen, compute dtype -------------------------------------------------+
                                                                           |
                                                                           v
    a part of the gradient <--reduce-scatter-- gradient <-- loss_m(batch_m)
      |
      +-- * lambda_m --sum over datasets in float32--> clip --> AdamW --> trainable, float32, a part

A part is what ZeRO-1 keeps on one position of the mesh's data axis (`sharding.zero`); without
ZeRO-1 it is the whole. Gradients are taken with respect to the trainable weights alone, so no
gradient of a frozen weight is ever formed. The same step trains, is planned ahead of time, and is
run by the tests on eight devices.
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
from flamingo_jax.core.stack import Loops, with_loops
from flamingo_jax.sharding.compile import compiler_options
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import batch_sharding, replicated
from flamingo_jax.training import datasets_per_step
from flamingo_jax.training.not_finite import Accept, accept_all
from flamingo_jax.training.objective import Metrics, Objective
from flamingo_jax.training.state import StateLayout, TrainState

Gather = Callable[[trees.Params], trees.Params]
Accumulate = Callable[..., tuple[trees.Params, Metrics]]
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
    accumulate: Accumulate = datasets_per_step.accumulate,
    accept: Accept = accept_all,
) -> tuple[TrainState[Array], Metrics]:
    """Does one update: a pure function.

    Args:
        state: before the update.
        batches: {dataset: batch}.
        rng: key of the run; the key of this update is fold_in(rng, state.step).
        objective: what is minimised.
        optimizer: turns the sum of the gradients into updates.
        schedules: the learning rates by their names in the log (`optimizer.make_schedules`).
        weights: {dataset: lambda_m}.
        policy: the compute dtype.
        gather: all-gathers the cast weights, once, before the first dataset.
        accumulate: sums the gradients of the datasets.
        accept: accept(state before, state after, metrics) says what becomes of an update that is
            not finite (`training.not_finite`).

    Returns:
        (state after, metrics). The metrics are "loss", "<dataset>/loss", "gradient_norm" (before
        the clip), the learning rates and the objective's gauges. All are measured with the weights
        before the update.
    """

    def loss(trainable: trees.Params, *arguments: Any) -> tuple[jax.Array, Metrics]:
        return objective.loss(trees.merge(trainable, state.frozen), *arguments)

    key = jax.random.fold_in(rng, state.step)
    with jax.named_scope("optimizer"):
        trainable = gather(policy.cast(state.trainable))
    gradients, metrics = accumulate(loss, trainable, batches, weights, key, objective.split)
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        after = optax.apply_updates(state.trainable, updates)
    metrics |= {
        "gradient_norm": optax.tree.norm(gradients),
        **{name: schedule(state.step) for name, schedule in schedules.items()},
        **objective.gauges(state.trainable),
    }
    updated = dataclasses.replace(state, step=state.step + 1, trainable=after, opt_state=opt_state)
    return accept(state, updated, metrics)


def make_step(
    state: StateLayout, layout: Layout, *, layers: Loops = "scanned", **parts: Any
) -> Step:
    """Jits `update` with the shardings of the mesh.

    The step reuses the buffers of the state it gets for the new state.

    Args:
        state: where the state's arrays are.
        layout: of activations and gradients. Batches must be split over (replica, data) of its
            mesh; metrics are replicated.
        layers: how the layers of the model compile (`core.stack.with_loops`).
        **parts: the keyword arguments of `update` except `gather`.
    """
    mesh = layout.mesh

    def gather(params: trees.Params) -> trees.Params:
        # `update` casts before it gathers: half the bytes
        part = jax.lax.with_sharding_constraint(params, state.shardings.trainable)
        return jax.lax.with_sharding_constraint(part, state.gathered)

    def step(
        before: TrainState[Array], batches: Mapping[str, Any], rng: jax.Array
    ) -> tuple[TrainState[Array], Metrics]:
        with with_layout(layout), with_loops(layers):
            return update(before, batches, rng, **parts, gather=gather)

    return jax.jit(
        step,
        in_shardings=(state.shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(state.shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, overlap=layout.halves),
    )
