"""Schedules, clips and decay, and the vision encoder's own (paper, B.1.2, B.1.3, B.2.2)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.training.optimizer import (
    LMOptimizerConfig,
    OptimizerConfig,
    Traits,
    VisionOptimizerConfig,
    make_optimizer,
    make_schedule,
    make_schedules,
)


def test_paper_schedule_is_linear_warmup_then_constant():
    schedule = make_schedule(OptimizerConfig(), steps=500_000)
    assert float(schedule(0)) == 0.0
    assert float(schedule(2_500)) == pytest.approx(0.5e-4)
    assert float(schedule(5_000)) == float(schedule(499_999)) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("kind", "middle"), [("cosine", 0.525), ("linear", 0.525), ("exponential", 0.05**0.5)]
)
def test_falling_schedules_end_at_the_final_fraction(kind, middle):
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=10, schedule=kind, decay_steps=110, final_fraction=0.05
    )
    schedule = make_schedule(config, steps=1_000)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(middle)
    assert float(schedule(110)) == pytest.approx(0.05)
    assert float(schedule(999)) == pytest.approx(0.05)  # the rate stays there until `steps`


def test_fall_ends_with_the_run_by_default():
    schedule = make_schedule(
        OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="linear"), steps=100
    )
    assert float(schedule(0)) == 1.0
    assert float(schedule(50)) == pytest.approx(0.5)
    assert float(schedule(100)) == 0.0


def test_exponential_fall_is_by_factors_of_ten():
    """A tenth of the peak after half of the updates is a hundredth after all (paper, B.2.2)."""
    config = OptimizerConfig(
        learning_rate=1e-5, warmup_steps=0, schedule="exponential", final_fraction=0.01
    )
    schedule = make_schedule(config, steps=200)
    np.testing.assert_allclose(
        [schedule(0), schedule(100), schedule(200)], [1e-5, 1e-6, 1e-7], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("group", "settings"), [("vision", VisionOptimizerConfig), ("lm", LMOptimizerConfig)]
)
def test_a_tower_has_a_schedule_of_the_same_form(group, settings):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, schedule="linear", decay_steps=110)
    assert set(make_schedules(config, steps=1_000)) == {"learning_rate"}
    config = dataclasses.replace(config, **{group: settings(learning_rate=0.25)})
    schedules = make_schedules(config, steps=1_000)
    assert set(schedules) == {"learning_rate", f"learning_rate/{group}"}
    rate, own_rate = schedules["learning_rate"], schedules[f"learning_rate/{group}"]
    for step in (0, 5, 60, 110):
        np.testing.assert_allclose(own_rate(step), 0.25 * rate(step), rtol=1e-6)


def one_update(config, gradients, weights, factors, groups=None):
    """Returns the first updates.

    `factors` and `groups` are trees: the decay and the group ("rest" by default) of each weight.
    """
    decay = trees.flatten(factors)
    axes = {path: ("vision",) * leaf.ndim for path, leaf in trees.flatten(weights).items()}
    traits = Traits(decay, trees.flatten(groups) if groups else dict.fromkeys(decay, "rest"), axes)
    optimizer = make_optimizer(config, make_schedule(config, steps=10), traits)
    return optimizer.update(gradients, optimizer.init(weights), weights)[0]


def test_decay_is_decoupled_and_by_weight():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1)
    weights = {"m": {"a": jnp.full(3, 2.0), "b": jnp.full(3, 2.0)}}
    zeros = {"m": {"a": jnp.zeros(3), "b": jnp.zeros(3)}}
    updates = one_update(config, zeros, weights, {"m": {"a": 1.0, "b": 0.0}})
    np.testing.assert_allclose(updates["m"]["a"], -0.5 * 0.1 * 2.0, rtol=1e-6)  # float32 rounding
    np.testing.assert_array_equal(updates["m"]["b"], 0.0)


def test_clip_is_one_global_norm():
    # With eps = 1 the update depends on the size of the gradient.
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, weight_decay=0.0, eps=1.0)
    weights = {"m": {"a": jnp.zeros(1), "b": jnp.zeros(1)}}
    factors = {"m": {"a": 1.0, "b": 1.0}}
    gradients = lambda a, b: {"m": {"a": jnp.array([a]), "b": jnp.array([b])}}
    large = one_update(config, gradients(30.0, 40.0), weights, factors)
    unit = one_update(config, gradients(0.6, 0.8), weights, factors)
    # float32 rounding of the norm
    np.testing.assert_allclose(large["m"]["a"], unit["m"]["a"], rtol=1e-6)
    np.testing.assert_allclose(large["m"]["b"], unit["m"]["b"], rtol=1e-6)


def test_towers_have_their_own_learning_rates():
    """Adam's first update is the sign of the gradient; the decay is scaled by the rate too.

    In float32 1 - 0.999 is correct to 3e-5, its root to 2e-5.
    """
    config = OptimizerConfig(
        learning_rate=0.5,
        warmup_steps=0,
        weight_decay=0.1,
        clip_norm=None,
        vision=VisionOptimizerConfig(learning_rate=0.05),
        lm=LMOptimizerConfig(learning_rate=0.2),
    )
    rates = {"vision": 0.05, "lm": 0.2, "rest": 0.5}
    of_all = lambda leaf: {"m": dict.fromkeys(rates, leaf)}
    groups = {"m": {group: group for group in rates}}
    updates = one_update(config, of_all(jnp.ones(3)), of_all(jnp.full(3, 2.0)), of_all(1.0), groups)
    for group, rate in rates.items():
        np.testing.assert_allclose(updates["m"][group], -rate * (1 + 0.1 * 2), rtol=2e-5)


def test_agc_bounds_the_vision_encoder_and_the_global_norm_all_else():
    """Paper, B.1.3.

    With eps = 1e4, Adam's division by (size + eps) is almost constant, so the update is
    proportional to the gradient.
    """
    config = OptimizerConfig(
        learning_rate=1e4,
        warmup_steps=0,
        weight_decay=0.0,
        eps=1e4,
        clip_norm=10.0,
        vision=VisionOptimizerConfig(agc=0.01),
    )
    weights = {"m": {"a": jnp.full((2, 2), 3.0), "b": jnp.zeros(1), "c": jnp.zeros(1)}}
    gradients = {
        "m": {"a": jnp.full((2, 2), 100.0), "b": jnp.array([30.0]), "c": jnp.array([40.0])}
    }
    groups = {"m": {"a": "vision", "b": "rest", "c": "rest"}}
    updates = one_update(config, gradients, weights, {"m": dict.fromkeys("abc", 0.0)}, groups)
    # A column of a has norm 3 * 2**0.5; its gradient is clipped to 1 % of that. b and c together
    # have norm 50, which is clipped to 10 independently of a.
    np.testing.assert_allclose(updates["m"]["a"], -0.03, rtol=1e-3)
    np.testing.assert_allclose(updates["m"]["b"], -6.0, rtol=1e-3)
    np.testing.assert_allclose(updates["m"]["c"], -8.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"decay_steps": 5_000}, "decay_steps 5000 must be beyond warmup_steps"),
        ({"b2": 1.0}, "b2 is 1.0; expected a number of at least 0 and below 1"),
        ({"eps": 0.0}, "eps is 0.0; expected a number from 1e-30 to 1"),
        ({"schedule": "exponential"}, "final_fraction is 0.0, which no exponential fall reaches"),
    ],
)
def test_config_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize("field", ["learning_rate", "agc"])
def test_settings_of_vision_are_checked(field):
    with pytest.raises(ValueError, match=rf"{field} is 0\.0; expected a number above 0"):
        VisionOptimizerConfig(**{field: 0.0})
