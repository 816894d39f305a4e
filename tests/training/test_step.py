"""One update on a small objective: accumulation, frozen weights, dtypes, tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import config_files
from flamingo_jax.core.overrides import Override
from flamingo_jax.core.trees import TableError, flatten
from flamingo_jax.planning import program
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.datasets_per_step import accumulate
from flamingo_jax.training.objective import WeightRule
from flamingo_jax.training.state import abstract_weights, split, traits
from tests.training import fake


@pytest.fixture(scope="module")
def run():
    return fake.Run()


KEY = jax.random.key(0)


def test_accumulation_over_two_datasets_is_the_gradient_of_the_weighted_sum(run):
    """Relative 1e-6: float32 sums of a few terms in another order."""
    state, batches = run.init(), next(fake.batches(0))
    objective, weights = run.parts["objective"], {"pages": 1.0, "pairs": 0.2}
    gradients, metrics = accumulate(objective.loss, state.params(), batches, weights, KEY)

    def weighted_sum(params):
        return sum(
            weights[name] * objective.loss(params, batch, KEY)[0] for name, batch in batches.items()
        )

    expected, direct = jax.value_and_grad(weighted_sum)(state.params())
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), gradients, direct
    )


def test_a_batch_split_over_two_datasets_is_the_same_update(run):
    """Two halves with weights 1/2 give the update of the whole batch.

    1e-5: Adam's division amplifies the rounding of float32.
    """
    whole = fake.batch(3, rows=8)
    halves = {
        name: {k: v[rows] for k, v in whole.items()}
        for name, rows in (("a", slice(0, 4)), ("b", slice(4, 8)))
    }
    split_run = fake.Run(weights={"a": 0.5, "b": 0.5})
    whole_run = fake.Run(weights={"whole": 1.0})
    from_halves = split_run.step(split_run.init(), halves, KEY)[0]
    from_whole = whole_run.step(whole_run.init(), {"whole": whole}, KEY)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        from_halves.saved(),
        from_whole.saved(),
    )


def test_frozen_weights_never_change_and_have_no_buffers(run):
    state = run.init()
    before = {path: np.array(leaf) for path, leaf in flatten(state.params()).items()}
    batches = fake.batches(0)
    for _ in range(4):
        state, _ = run.step(state, next(batches), KEY)
    after = flatten(state.params())
    assert set(flatten(state.frozen)) == {"fake/tower"}
    np.testing.assert_array_equal(after["fake/tower"], before["fake/tower"])
    assert not np.array_equal(after["fake/head"], before["fake/head"])
    moments = [
        leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (fake.WIDTH, fake.HIDDEN)
    ]
    assert not moments


def test_compiled_step_takes_frozen_weights_in_bfloat16_and_masters_in_float32():
    run = fake.Run(compute="bfloat16")
    lowered = run.step.lower(run.layout.abstract, next(fake.batches(0)), KEY)
    state, _ = lowered.in_avals[0][0], None
    assert flatten(state.frozen)["fake/tower"].dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in flatten(state.trainable).values())
    text = lowered.as_text()
    matmuls = [line for line in text.splitlines() if "dot_general" in line]
    assert matmuls
    assert all("bf16" in line for line in matmuls)
    of_tower_shape = f"tensor<{fake.WIDTH}x{fake.HIDDEN}x"
    assert f"{of_tower_shape}bf16>" in text
    # no gradient, no moment, no master copy of the frozen weight
    assert f"{of_tower_shape}f32>" not in text
    state, metrics = run.step(run.init(), next(fake.batches(0)), KEY)
    assert state.params()["fake"]["tower"].dtype == jnp.bfloat16
    assert metrics["loss"].dtype == jnp.float32


def test_frozen_weights_stored_in_bfloat16_are_those_of_init_rounded(run):
    exact = run.init().params()["fake"]["tower"]
    rounded = fake.Run(compute="bfloat16").init().params()["fake"]["tower"]
    np.testing.assert_array_equal(exact.astype(jnp.bfloat16), rounded)


def test_metrics_belong_to_the_weights_before_the_update(run):
    state = run.init()
    loss = run.parts["objective"].loss(state.params(), next(fake.batches(0))["pages"], KEY)[0]
    _, metrics = run.step(state, next(fake.batches(0)), KEY)
    # 1e-6: one is compiled with jit, the other is not.
    np.testing.assert_allclose(metrics["pages/loss"], loss, rtol=1e-6)
    assert float(metrics["learning_rate"]) == 0.0
    assert set(metrics) == {
        *("loss", "pages/loss", "pairs/loss", "pages/rows", "pairs/rows"),
        *("gradient_norm", "learning_rate", "gates/bias"),
    }


def test_randomness_depends_on_seed_and_step_alone():
    def noisy(params, batch, rng):
        return jnp.float32(0) * params["fake"]["bias"], {"draw": jax.random.uniform(rng)}

    run = fake.Run(objective=fake.make_objective(loss=noisy))
    draws, state = [], run.init()
    for batches in (next(fake.batches(0)), next(fake.batches(7))):
        state, metrics = run.step(state, batches, KEY)
        draws.append((float(metrics["pages/draw"]), float(metrics["pairs/draw"])))
    assert len({draw for pair in draws for draw in pair}) == 4  # another for each dataset and step
    at_one = dataclasses.replace(run.init(), step=jnp.asarray(1, jnp.int32))
    _, again = run.step(at_one, next(fake.batches(5)), KEY)
    assert (float(again["pages/draw"]), float(again["pairs/draw"])) == draws[1]


def test_tables_match_each_weight_exactly_once(run):
    params = run.init().params()
    with pytest.raises(TableError, match="fake/tower"):
        split(fake.make_objective(table=(WeightRule(r".*/(head|bias)"),)), params)
    twice = (fake.TOWER, fake.HEAD, WeightRule(r".*/(head|bias)", decay=0.0))
    with pytest.raises(TableError, match=r"fake/head.*2 rows"):
        abstract_weights(fake.make_objective(table=twice))
    objective = fake.make_objective()
    known = traits(objective, abstract_weights(objective))
    assert known.decay == {"fake/bias": 0.0, "fake/head": 1.0}


def test_eight_devices_hold_shards_and_agree_with_one(run):
    """Relative 1e-5: sums over 2 x 4 shards have another order, and Adam divides small numbers."""
    sharded = fake.Run(mesh=(1, 2, 4))
    one, eight = run.init(), sharded.init()
    fake.assert_trees_equal(one.saved(), eight.saved())
    assert {s.data.shape for s in eight.params()["fake"]["tower"].addressable_shards} == {
        (fake.WIDTH, fake.HIDDEN // 4)
    }
    moments = [leaf for leaf in jax.tree.leaves(eight.opt_state) if leaf.shape == (fake.HIDDEN,)]
    assert len(moments) == 2
    assert all(
        {s.data.shape for s in leaf.addressable_shards} == {(fake.HIDDEN // 4,)} for leaf in moments
    )
    for step in range(3):
        batches = next(fake.batches(step))
        (one, a), (eight, b) = run.step(one, batches, KEY), sharded.step(eight, batches, KEY)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        one.saved(),
        eight.saved(),
    )


@pytest.mark.parametrize(("layers", "loops"), [("scanned", True), ("unrolled", False)])
def test_layers_of_the_config_decide_how_the_stacks_compile(layers, loops):
    fields = [Override("layers", layers), Override("model.lm.vocab_size", "600")]
    config = config_files.read(TrainConfig, "tiny:language_model", fields)
    text = program.train(config, make_mesh(config.mesh, jax.devices()[:1]), {}).lowered.as_text()
    assert ("stablehlo.while" in text) == loops
