"""A batch in chunks: the update of the whole batch, in the memory of one chunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.data.config import DatasetConfig, check_chunks
from flamingo_jax.data.schema import check
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import chunks
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.datasets_per_step import accumulate
from tests.training import small

KEY = jax.random.key(5)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
PAIRS = {"pairs": DatasetConfig("pairs", "records", batch_size=8, length=8)}


def in_chunks(batch, number):
    """Returns a batch of one pool with a pool for each chunk, without gaps."""
    rows, pool = len(batch.tokens) // number, len(batch.frames) // number
    slots = np.full_like(batch.media_slot, -1)
    moved = {
        name: np.zeros_like(getattr(batch, name)) for name in ("frames", "frame_mask", "media_key")
    }
    for row, n in np.argwhere(batch.media_slot >= 0):
        first = row // rows * rows
        slots[row, n] = (slots[first : first + rows] >= 0).sum()
        for name, array in moved.items():
            array[row // rows * pool + slots[row, n]] = getattr(batch, name)[
                batch.media_slot[row, n]
            ]
    made = dataclasses.replace(batch, media_slot=slots, **moved, chunks=number)
    check(made)
    return made


def uneven(rows, length, images):
    """Returns a batch whose rows have different numbers of images and of real tokens."""
    made = small.batch(rows=rows, length=length, images=images, seed=3)
    for row in range(0, rows, 3):
        made.media_slot[row, 1:], made.media_index[row] = -1, np.minimum(made.media_index[row], 1)
    weights = np.arange(rows)[:, None] >= np.arange(length)[None, :] - length + rows - 1
    made = dataclasses.replace(made, loss_weights=weights.astype(np.float32))
    return in_chunks(made, 1)


def objective_of(stage):
    """Returns the objective; a vision encoder is trained, and drops half of its second block."""
    described = small.get_config(stage)
    if stage == "flamingo":
        described.unfrozen = ("vision",)
        described.model.vision.update(depths=(2,), stochastic_depth=1.0, loop="scan")
    config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    return run_lib.build_objective(config, num_shards=1)


def random_weights(objective, dtype):
    """Returns weights that no other part of the model hides, such as a gate of 0."""
    shapes = jax.eval_shape(objective.model.init, KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), dtype), shapes
    )
    return objective.model.compute_form(params)


def summed(objective, params, batch):
    """Returns (gradients, metrics) of a batch."""

    def add(params, batch):
        return accumulate(
            objective.loss, params, {"data": batch}, {"data": 0.5}, KEY, objective.split
        )

    gradients, metrics = jax.jit(add).lower(params, batch).compile(QUICK)(params, batch)
    return trees.flatten(jax.device_get(gradients)), jax.device_get(metrics)


@pytest.mark.parametrize(
    ("stage", "numbers"), [("language_model", (2, 4)), ("flamingo", (2,))], ids=str
)
def test_chunks_change_nothing(stage, numbers):
    """1e-5 of the largest entry of each weight's gradient: float32 sums in another order.

    Rows have different numbers of images and of real tokens. Blocks that are dropped do not depend
    on the chunks.
    """
    objective = objective_of(stage)
    params = random_weights(objective, "float32")
    batch = uneven(rows=8, length=12, images=2 if stage == "flamingo" else 0)
    expected, its_metrics = summed(objective, params, batch)
    for number in numbers:
        gradients, metrics = summed(objective, params, in_chunks(batch, number))
        for name, value in its_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        for path, leaf in expected.items():
            error = 1e-5 * np.abs(leaf).max() + 1e-7
            np.testing.assert_allclose(gradients[path], leaf, rtol=0, atol=error, err_msg=path)


def test_in_bfloat16_chunks_are_as_exact_as_the_batch():
    """The distance to the gradient in float32, over all weights: at most a quarter more.

    It is the rounding of activations and gradients, also without chunks.
    """
    objective = objective_of("language_model")
    params = random_weights(objective, "bfloat16")
    batch = uneven(rows=8, length=12, images=0)
    exact, _ = summed(objective, jax.tree.map(lambda leaf: leaf.astype("float32"), params), batch)

    def distance(number):
        found, _ = summed(objective, params, in_chunks(batch, number))
        return np.sqrt(sum(np.sum((found[path] - leaf) ** 2) for path, leaf in exact.items()))

    whole = distance(1)
    assert 0 < whole < 0.02 * np.sqrt(sum(np.sum(leaf**2) for leaf in exact.values()))
    assert distance(4) < 1.25 * whole


def test_the_order_of_the_sum():
    """Float32: dataset after dataset, those of equal shape together; chunk after chunk of each."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.normal(size=shape) * 4.0 ** rng.integers(0, 9, shape)).astype("f4")
    batches = {"a": draw(3, 64), "b": draw(2, 64), "c": draw(3, 64)}
    weights = {"a": 1.0, "b": 0.5, "c": 2.0}  # products with them are exact
    split = lambda batch, key: chunks.Parts(len(batch), lambda i: (batch[i], key))
    loss = lambda params, x, key: (jnp.sum(params["m"]["w"] * x), {"tokens": jnp.float32(1)})

    def summed(params, batches):
        return accumulate(loss, params, batches, weights, KEY, split)

    gradients, metrics = jax.jit(summed)({"m": {"w": np.ones(64, np.float32)}}, batches)
    total = np.zeros(64, np.float32)
    for name in ("a", "c", "b"):
        for part in batches[name]:
            total = total + np.float32(weights[name]) * part
    np.testing.assert_array_equal(gradients["m"]["w"], total)
    assert {name: metrics[f"{name}/tokens"] for name in batches} == {"a": 3, "b": 2, "c": 3}
    another = sum(np.float32(weights[name]) * batches[name].sum(axis=0) for name in "abc")
    assert np.any(another != total), "the order does not matter for these numbers"


def test_gradients_of_chunks_are_summed_in_float32():
    """In bfloat16 the sum of 256 and three ones is 256."""
    batch = jnp.array([256, 1, 1, 1], jnp.bfloat16)
    split = lambda batch, key: chunks.Parts(4, lambda i: (batch[i], key))
    loss = lambda params, x, key: ((params["m"]["w"] * x).astype(jnp.float32), {})
    gradients, _ = accumulate(
        loss, {"m": {"w": jnp.bfloat16(1)}}, {"a": batch}, {"a": 1.0}, KEY, split
    )
    assert gradients["m"]["w"].dtype == jnp.float32
    assert float(gradients["m"]["w"]) == 259.0


@pytest.mark.parametrize(
    ("stage", "sizes"), [("flamingo", (1, 1, 1)), ("language_model", (1, 8, 1))]
)
def test_the_step_needs_the_memory_of_a_chunk(stage, sizes):
    """Temporaries of the compiled step, per device. Weights and gradients do not shrink."""
    described = small.get_config(stage)
    config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    run = run_lib.compile(config, mesh)
    images = 2 if stage == "flamingo" else 0
    batch = small.batch(rows=64, length=64, images=images, seed=0)

    def temporaries(number):
        batches = {name: dataclasses.replace(batch, chunks=number) for name in ("pages", "text")}
        used = {name: batches[name] for name in config.data.datasets if name in batches}
        lowered = run.step.lower(run.layout.abstract, used, jax.random.key(2))
        return lowered.compile(QUICK).memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)


def test_a_chunk_has_rows_of_each_data_shard():
    rows = {"a": jnp.arange(24), "b": jnp.arange(48).reshape(24, 2)}
    cut = chunks.by_chunk(rows, 3, num_shards=2)
    found = chunks.chunk(cut, jnp.int32(1))
    np.testing.assert_array_equal(found["a"], [4, 5, 6, 7, 16, 17, 18, 19])
    np.testing.assert_array_equal(found["b"], rows["b"][found["a"]])


@pytest.mark.parametrize(
    ("changes", "num_shards", "message"),
    [
        ({"chunks": 3}, 2, r"pairs.chunks is 3, .* has 4 row\(s\) .* divisor of 4, .*chunks=2\."),
        ({"chunks": 2, "pool": 5}, 2, "4 row.s. and a pool of 5 .* divisor of 1, .*chunks=1"),
        ({"chunks": 16}, 1, "divisor of 8, .*chunks=8"),
    ],
)
def test_chunks_must_divide_the_rows_of_a_shard(changes, num_shards, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_chunks("pairs", dataclasses.replace(PAIRS["pairs"], **changes), num_shards)
    assert len(str(error.value).splitlines()) == 1
    check_chunks("pairs", dataclasses.replace(PAIRS["pairs"], chunks=4, pool=8), 2)
    with pytest.raises(ConfigError, match="chunks is 0"):
        dataclasses.replace(PAIRS["pairs"], chunks=0)


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("flamingo", {"mixing": "merged"}, "a merged batch is cut into one number of chunks"),
        ("contrastive", {"mixing": "merged"}, "a vision encoder that is trained would drop"),
        ("contrastive", {"model.contrastive.chunk": 2}, "the former name of the same"),
    ],
)
def test_what_chunks_cannot_do_is_refused(stage, fields, message):
    described = small.get_config(stage)
    next(iter(described.data.datasets.values())).chunks = 2
    described.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=f"data.datasets.NAME.chunks is .*: 2.*{message}"):
        from_dict(TrainConfig, described)
