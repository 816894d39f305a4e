"""A batch embedded in chunks: the loss and gradient of the whole batch, in constant memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.gradient_cache import in_chunks
from flamingo_jax.training.run import build_objective
from tests.training import small

KEY = jax.random.key(5)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def objective(chunk=0, num_shards=1):
    """Returns the contrastive stage with augmentation, and half of the branches dropped.

    `chunk` is the field of version 0.4.0 for the number of chunks.
    """
    described = small.get_config("contrastive")
    described.model.vision.update(depths=(2,), stochastic_depth=1.0, loop="scan")
    described.model.contrastive.chunk = chunk
    config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    return build_objective(config, num_shards)


@pytest.fixture(scope="module")
def params():
    """Initial weights.

    Larger random weights would make all embeddings nearly equal, and gradients small differences of
    large numbers.
    """
    return jax.jit(objective().model.init).lower(KEY).compile(QUICK)(KEY)


def loss_and_gradient(chosen, params, batch, key):
    lowered = jax.jit(jax.value_and_grad(chosen.loss, has_aux=True)).lower(params, batch, key)
    return lowered.compile(QUICK)(params, batch, key)


def test_chunks_change_nothing(params):
    """Also with stochastic depth and augmentation: each row has the same key in both passes.

    Float32 sums over rows have another order: 1e-5 of the largest entry of each gradient. The
    gradient of the temperature is a difference of means of about 10, that of the keys' bias is 0
    except for rounding: 1e-6.
    """
    batch = small.batch(rows=8, length=6, images=1, seed=3)
    (expected, its_metrics), whole = loss_and_gradient(objective(), params, batch, KEY)
    batch = dataclasses.replace(batch, chunks=4)
    (loss, metrics), gradient = loss_and_gradient(objective(), params, batch, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for name, number in its_metrics.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, err_msg=name)
    for path, leaf in trees.flatten(whole).items():
        cancels = path.endswith(("log_temperature", "key/b"))
        error = 1e-6 if cancels else 1e-5 * np.abs(leaf).max()
        np.testing.assert_allclose(
            trees.flatten(gradient)[path], leaf, rtol=0, atol=error, err_msg=path
        )


def test_rows_come_back_in_their_order():
    rows = {"a": jnp.arange(24), "b": jnp.arange(48).reshape(24, 2)}
    embed = lambda params, rows: (rows["a"] * params["m"]["w"], rows["b"])
    weights = {"m": {"w": jnp.float32(2)}}
    for number, num_shards in ((24, 1), (4, 3), (3, 2), (1, 1)):
        a, b = in_chunks(embed, weights, rows, number=number, num_shards=num_shards)
        np.testing.assert_array_equal(a, 2.0 * rows["a"])
        np.testing.assert_array_equal(b, rows["b"])


def test_gradients_of_chunks_are_summed_in_float32():
    """256 + 255 ones is 511, which is 512 in bfloat16.

    A sum in bfloat16 would stay at 256, since there 256 + 1 is 256.
    """
    rows = jnp.concatenate([jnp.array([256.0]), jnp.ones(255)]).astype(jnp.bfloat16)

    def total(params):
        found = in_chunks(lambda p, x: p["m"]["w"] * x, params, rows, number=256, num_shards=1)
        return jnp.sum(found.astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))({"m": {"w": jnp.bfloat16(1)}})["m"]["w"]
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient) == 512.0


def test_memory_does_not_grow_with_the_batch(params):
    """Only the rows themselves, embeddings [B, 8] and similarities [B, B] grow.

    The bound allows ten arrays of the last two.
    """

    def temporaries(rows, number):
        batch = small.batch(rows=rows, length=6, images=1, seed=0)
        batch = dataclasses.replace(batch, chunks=number)
        step = jax.jit(jax.grad(lambda p, b: objective().loss(p, b, KEY)[0]))
        return step.lower(params, batch).compile(QUICK).memory_analysis().temp_size_in_bytes

    allowed = 10 * 4 * ((64 - 16) * 8 + 64**2 - 16**2)
    in_chunks = temporaries(64, 16)
    assert in_chunks - temporaries(16, 4) < allowed
    assert temporaries(64, 1) - in_chunks > 5 * allowed


def test_the_field_of_version_0_4_0_means_rows_of_a_shard(params):
    """On two data shards of 4 rows, 1 row at a time is 4 chunks: the same program."""
    batch = small.batch(rows=8, length=6, images=1, seed=3, num_shards=2)

    def program(chosen, batch):
        return str(jax.make_jaxpr(lambda batch: chosen.loss(params, batch, KEY))(batch))

    expected = program(objective(num_shards=2), dataclasses.replace(batch, chunks=4))
    assert program(objective(chunk=1, num_shards=2), batch) == expected
    assert program(objective(num_shards=2), batch) != expected


def test_a_chunk_must_divide_the_rows_of_a_shard(params):
    batch = small.batch(rows=8, length=6, images=1, seed=3)
    with pytest.raises(
        ConfigError, match=r"chunk is 3, and a batch of 8 rows on 2 data shards has 4 on each"
    ):
        jax.eval_shape(objective(3, num_shards=2).loss, params, batch, KEY)
    with pytest.raises(ValueError, match="chunk is -1"):
        dataclasses.replace(
            from_dict(TrainConfig, small.get_config("contrastive")).model.contrastive, chunk=-1
        )
