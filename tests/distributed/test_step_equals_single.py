"""Eight devices equal one for the training step, on the real Flamingo (DESIGN: Step, Mesh)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.config import from_dict
from flamingo_jax.core.trees import flatten
from flamingo_jax.data import schema
from flamingo_jax.data.device import to_device
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.optimizer import make_optimizer, make_schedule
from flamingo_jax.training.stage import build_objective
from flamingo_jax.training.state import plan_state
from flamingo_jax.training.step import make_step
from tests.training import small

NUM_SHARDS = 2  # also for one device: a slot counts within its shard's pool
WEIGHTS = {"pages": 1.0, "pairs": 0.5}
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def fast_compilation():
    """What takes time here is compilation alone: the same steps, half the seconds."""
    jax.config.update("jax_disable_most_optimizations", val=True)
    yield
    jax.config.update("jax_disable_most_optimizations", val=False)


@pytest.fixture(scope="module")
def batches():
    made = [
        {
            "pages": small.batch(rows=4, length=12, images=2, seed=10 * step, num_shards=NUM_SHARDS),
            "pairs": small.batch(rows=4, length=8, images=1, seed=10 * step + 1, num_shards=NUM_SHARDS),
        }
        for step in range(STEPS)
    ]
    for pair in made:
        for name, batch in pair.items():
            schema.check(batch, num_shards=NUM_SHARDS, where=name)
    return made


@pytest.fixture(scope="module")
def config():
    return from_dict(TrainConfig, small.get_config("flamingo")).resolved(small.VOCABULARY)


def run(config, mesh, batches):
    """Returns (state, metrics of each step, state at the start) as numpy, and the last state on the devices."""
    objective = build_objective(config, NUM_SHARDS)[1]
    schedule = make_schedule(config.optimizer, config.steps)
    plan, optimizer = plan_state(
        objective, lambda f: make_optimizer(config.optimizer, schedule, f), mesh, config.precision
    )
    parts = {
        "objective": objective,
        "optimizer": optimizer,
        "schedule": schedule,
        "weights": WEIGHTS,
        "policy": config.precision,
    }
    step = make_step(plan, MeshConfig().layout(mesh), **parts)
    state = _with_open_gates(plan.init(jax.random.key(1)), plan.shardings)
    first, metrics = jax.tree.map(np.asarray, state), []
    for pair in batches:
        state, numbers = step(state, {name: to_device(batch, mesh) for name, batch in pair.items()}, jax.random.key(2))
        metrics.append(jax.device_get(numbers))
    return first, jax.tree.map(np.asarray, state), metrics, state


def _with_open_gates(state, shardings):
    """Shut gates would hide everything but themselves in the first step."""
    for name in ("attention_gate", "dense_gate"):
        for module in state.trainable:
            if name in state.trainable[module]:
                gate = state.trainable[module][name]
                state.trainable[module][name] = jax.device_put(jnp.full(gate.shape, 0.5), gate.sharding)
    return state


@pytest.fixture(scope="module")
def one(config, batches):
    return run(config, make_mesh(MeshConfig(), jax.devices()[:1]), batches)


@pytest.fixture(scope="module")
def eight(config, batches):
    return run(config, make_mesh(MeshConfig(replica=1, data=2, model=4)), batches)


def test_weights_at_birth_are_the_same_bits(one, eight):
    jax.tree.map(np.testing.assert_array_equal, one[0], eight[0])


def test_losses_and_gradient_norms_agree(one, eight):
    """float32: a sum of up to 1e3 terms in another order differs by about 1e-6 of its size: relative 1e-5."""
    for a, b in zip(one[2], eight[2], strict=True):
        assert set(a) == set(b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_states_agree(one, eight):
    """Weights move by up to 1e-2 a step (Adam at learning rate 1e-2), and differ by less than 1e-5 after three.

    A gradient's rounding error of 1e-6 of its size passes through Adam's division unchanged, and is multiplied by the
    learning rate: 1e-8 for most weights. The bound leaves room for weights whose gradient nearly cancels.
    """
    moved = 0.0
    for path, expected in flatten(one[1].trainable).items():
        np.testing.assert_allclose(flatten(eight[1].trainable)[path], expected, rtol=1e-5, atol=1e-5, err_msg=path)
        moved = max(moved, float(np.max(np.abs(expected - flatten(one[0].trainable)[path]))))
    assert moved > 1e-2
    jax.tree.map(np.testing.assert_array_equal, one[1].frozen, eight[0].frozen)


def test_the_weights_are_spread_over_the_model_axis(eight):
    state = eight[3]
    spread = {path: leaf for path, leaf in flatten(state.params()).items() if not leaf.sharding.is_fully_replicated}
    names = {path.rsplit("/", 2)[-2] for path in spread}
    assert {"query", "key", "value", "out"} <= names, f"not split over heads: {sorted(spread)}"
    assert "flamingo/lm/embedding" in spread
    for leaf in spread.values():
        assert leaf.addressable_shards[0].data.size * 4 == leaf.size
