"""Updates that are not finite: skipped in the compiled step, and weights that are not saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.sharding.mesh import replicated
from flamingo_jax.training.not_finite import keep_finite, refuse_weights
from tests.training import fake

KEY = jax.random.key(0)
MESHES = [(1, 1, 1), (1, 2, 4)]


@pytest.fixture(scope="module", params=MESHES, ids=["one device", "eight devices"])
def runs(request):
    """(run that stops, run that skips)."""
    return fake.Run(request.param), fake.Run(request.param, accept=keep_finite)


def bad(batches, value=np.nan, name="pairs"):
    batches = {each: dict(batch) for each, batch in batches.items()}
    batches[name]["y"][3] = value
    return batches


def snapshot(state):
    return jax.tree.map(np.array, state)


def test_without_a_bad_batch_both_runs_are_equal_to_the_bit(runs):
    states, found = [], []
    for run in runs:
        state, batches = run.init(), fake.batches(0)
        for _ in range(5):
            state, metrics = run.step(state, next(batches), KEY)
        states.append(state)
        found.append(dict(metrics))
    assert found[1].pop("skipped") == 0
    fake.assert_trees_equal(*states)
    fake.assert_trees_equal(*found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_update_leaves_weights_moments_and_counts_and_only_the_step_goes_on(runs, value):
    run, batches = runs[1], fake.batches(0)
    state = run.step(run.init(), next(batches), KEY)[0]
    before = snapshot(state)
    state, metrics = run.step(state, bad(next(batches), value), KEY)
    after = snapshot(state)
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["pairs/loss"])
    fake.assert_trees_equal(after.trainable, before.trainable)
    adam, schedule = (
        optax.tree.get(after.opt_state, "ScaleByAdamState"),
        optax.tree.get(after.opt_state, "ScaleByScheduleState"),
    )
    fake.assert_trees_equal(adam, optax.tree.get(before.opt_state, "ScaleByAdamState"))
    # the data and the learning rate follow the number of the update
    assert (int(after.step), int(schedule.count), int(adam.count)) == (2, 2, 1)
    assert {type(leaf) for leaf in jax.tree.leaves(after)} == {np.ndarray}
    _, metrics = run.step(state, next(batches), KEY)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is_finite():
    def loss(params, batch, rng):
        del rng
        return jnp.sqrt(jnp.square(params["fake"]["bias"]) * batch["x"].sum()), {}

    run = fake.Run(objective=fake.make_objective(loss=loss), accept=keep_finite)
    state = run.init()
    before = snapshot(state)  # bias is 0: the root has no derivative there
    state, metrics = run.step(state, next(fake.batches(0)), KEY)
    assert metrics["loss"] == 0 and metrics["skipped"] == 1
    fake.assert_trees_equal(snapshot(state).trainable, before.trainable)


def with_head(run, value):
    state = run.init()
    head = state.trainable["fake"]["head"].at[1].set(value)
    trainable = {"fake": {**state.trainable["fake"], "head": head}}
    return dataclasses.replace(state, trainable=trainable)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_weights_that_compute_nothing_finite_are_not_saved(runs, value):
    run = runs[0]
    check = refuse_weights(replicated(run.mesh))
    check(run.init())
    with pytest.raises(NonFiniteError, match=r"After step 0, 1 of \d+ .*fake/head.*not saved"):
        check(with_head(run, value))


def test_a_moment_that_is_not_finite_is_not_saved(runs):
    run = runs[0]
    state = run.init()
    state = dataclasses.replace(
        state,
        opt_state=jax.tree.map(
            lambda leaf: jnp.full_like(leaf, jnp.inf) if leaf.dtype == jnp.float32 else leaf,
            state.opt_state,
        ),
    )
    with pytest.raises(NonFiniteError, match="moments of the optimizer"):
        refuse_weights(replicated(run.mesh))(state)
