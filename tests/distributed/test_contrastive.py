"""The contrastive step on meshes: the loss is over the whole batch on any number of chips.

No chip has all similarities.
"""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import optax
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.data.to_device import to_device
from flamingo_jax.planning import hlo
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh, num_batch_shards
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.datasets_per_step import merge
from flamingo_jax.training.optimizer import make_optimizer
from tests.training import small

ROWS = 24  # of each dataset; no dimension of the model is 24 or 48
LENGTHS = {"align": 8, "ltip": 8}
ONE = (1, 1, 1)
# Leaves out optimisations for the CPU; they do not change how the step is partitioned.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def step_on(sizes, chunks=1, mixing="accumulate"):
    """Returns (gradients, metrics, weights, compiled text) of the first update on a mesh."""
    described = small.get_config("contrastive")
    captions = described.data.datasets.captions
    described.data.datasets = dict.fromkeys(LENGTHS, captions)
    described.model.contrastive.update(label_smoothing=0.1, duplicates="negatives")
    described.model.text_encoder.num_heads = 4
    described.optimizer.update(eps=1e-3, warmup_steps=0)
    described.mixing = mixing
    described.mesh.update(dict(zip(("replica", "data", "model"), sizes, strict=True)))
    config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    keep_gradients = lambda *args: optax.chain(optax.trace(decay=0.0), make_optimizer(*args))
    with mock.patch.object(run_lib.optimizer_lib, "make_optimizer", keep_gradients):
        run = run_lib.compile(config, mesh)
    batches = {
        name: small.batch(rows=ROWS, length=length, images=1, seed=i)
        for i, (name, length) in enumerate(LENGTHS.items())
    }
    batches = {name: dataclasses.replace(each, chunks=chunks) for name, each in batches.items()}
    if mixing == "merged":
        batches = {"merged": merge(batches, dict.fromkeys(LENGTHS, 1.0), num_batch_shards(mesh))}
    key = jax.random.key(2)
    compiled = run.step.lower(run.layout.abstract, batches, key).compile(QUICK)
    state = run.layout.init(jax.random.key(1))
    placed = {name: to_device(batch, mesh) for name, batch in batches.items()}
    after, metrics = compiled(state, placed, key)
    gradients = trees.flatten(after.opt_state[0].trace)
    weights = trees.flatten(after.trainable)
    return (
        jax.device_get(gradients),
        jax.device_get(metrics),
        jax.device_get(weights),
        compiled.as_text(),
    )


@pytest.mark.parametrize(
    ("sizes", "chunks", "mixing"),
    [
        ((1, 8, 1), 1, "accumulate"),
        ((1, 8, 1), 3, "accumulate"),
        ((2, 2, 2), 2, "accumulate"),
        ((1, 2, 4), 1, "merged"),
    ],
    ids=str,
)
def test_the_loss_is_over_the_global_batch(sizes, chunks, mixing):
    """Losses and gradients on eight devices, in chunks or not, equal those on one.

    1e-5: float32 sums in another order.
    """
    gradients, metrics, weights, _ = step_on(sizes, chunks, mixing)
    expected, its_metrics, its_weights, _ = step_on(ONE, 1, mixing)
    assert set(metrics) == set(its_metrics)
    for name, number in its_metrics.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, atol=1e-7, err_msg=name)
    for path, leaf in expected.items():
        # The gradient of the keys' bias is only rounding.
        error = 1e-5 * np.abs(leaf).max() + 1e-7
        np.testing.assert_allclose(gradients[path], leaf, rtol=0, atol=error, err_msg=path)
        np.testing.assert_allclose(
            weights[path], its_weights[path], rtol=1e-6, atol=1e-2 / 1e-3 * error + 1e-7
        )


def wholes(text, rows):
    """Returns the instructions of a compiled program that make an array of rows x rows."""
    found = []
    for computation in hlo.parse(text).computations.values():
        for instruction in computation:
            shapes = [shape for _, shape in hlo.leaves(instruction.type)]
            found += [
                f"{instruction.name} {shape}"
                for shape in shapes
                if sorted(shape)[-2:] == [rows, rows]
            ]
    return found


@pytest.mark.parametrize(("sizes", "chunks"), [((1, 8, 1), 1), ((2, 2, 2), 2)], ids=str)
def test_no_chip_holds_all_similarities(sizes, chunks):
    """Each chip has the rows of its texts: with 16,384 rows the whole is a GiB of float32."""
    text = step_on(sizes, chunks)[3]
    assert not wholes(text, ROWS)
    assert wholes(step_on(ONE)[3], ROWS), "the check finds none on one device"
    assert f"[{ROWS // 8},{ROWS}]" in text
