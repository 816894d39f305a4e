"""Schedules, clip and weight decay (paper, B.1.2)."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def test_paper_schedule_is_linear_warmup_then_constant():
    schedule = make_schedule(OptimizerConfig(), steps=500_000)
    assert float(schedule(0)) == 0.0
    assert float(schedule(2_500)) == pytest.approx(0.5e-4)
    assert float(schedule(5_000)) == float(schedule(499_999)) == pytest.approx(1e-4)


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.525), ("linear", 0.525)])
def test_falling_schedules_end_at_the_final_fraction(kind, middle):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule=kind, decay_steps=110, final_fraction=0.05)
    schedule = make_schedule(config, steps=1_000)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(middle)
    assert float(schedule(110)) == pytest.approx(0.05)
    assert float(schedule(999)) == pytest.approx(0.05)  # steps is a maximum; the fall has ended


def test_fall_ends_with_the_run_by_default():
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="linear"), steps=100)
    assert float(schedule(0)) == 1.0
    assert float(schedule(50)) == pytest.approx(0.5)
    assert float(schedule(100)) == 0.0


def one_update(config, gradients, weights, factors):
    optimizer = make_optimizer(config, make_schedule(config, steps=10), factors)
    return optimizer.update(gradients, optimizer.init(weights), weights)[0]


def test_decay_is_decoupled_and_by_weight():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1)
    weights = {"m": {"a": jnp.full(3, 2.0), "b": jnp.full(3, 2.0)}}
    zeros = {"m": {"a": jnp.zeros(3), "b": jnp.zeros(3)}}
    updates = one_update(config, zeros, weights, {"m": {"a": 1.0, "b": 0.0}})
    np.testing.assert_allclose(updates["m"]["a"], -0.5 * 0.1 * 2.0, rtol=1e-6)  # float32 rounding
    np.testing.assert_array_equal(updates["m"]["b"], 0.0)


def test_clip_is_one_global_norm():
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=0, weight_decay=0.0, eps=1.0
    )  # eps 1: the size shows in the update
    weights = {"m": {"a": jnp.zeros(1), "b": jnp.zeros(1)}}
    factors = {"m": {"a": 1.0, "b": 1.0}}
    large = one_update(config, {"m": {"a": jnp.array([30.0]), "b": jnp.array([40.0])}}, weights, factors)
    unit = one_update(config, {"m": {"a": jnp.array([0.6]), "b": jnp.array([0.8])}}, weights, factors)
    np.testing.assert_allclose(large["m"]["a"], unit["m"]["a"], rtol=1e-6)  # float32 rounding of the norm
    np.testing.assert_allclose(large["m"]["b"], unit["m"]["b"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be positive"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"decay_steps": 5_000}, "decay_steps 5000 must be beyond warmup_steps"),
    ],
)
def test_config_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)
