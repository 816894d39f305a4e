"""A step that trains adapters of the language model is the same on every mesh.

Bounds are as in test_step_on_meshes.py.
"""

import dataclasses
import functools

import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.nn.lora import LoRAConfig, is_adapter
from flamingo_jax.sharding import mesh as mesh_lib
from flamingo_jax.sharding.mesh import MeshConfig
from tests.distributed import meshes
from tests.distributed.test_slices import SIZES, in_two_slices
from tests.distributed.test_step_on_meshes import assert_same_step

ONE, EIGHT = (1, 1, 1), (1, 2, 4)
TARGETS = ("query", "key", "value", "out", "up", "down")


def changes():
    run = meshes.run_config(MeshConfig())
    adapters = LoRAConfig(rank=2, alpha=2.0, targets=TARGETS)
    lm = dataclasses.replace(run.model.lm, position="learned", lora=adapters)
    return ("unfrozen", ("lm.lora",)), ("model", dataclasses.replace(run.model, lm=lm))


def step_on(*sizes, frozen, make=meshes.step_on, **fields):
    return make(*sizes, frozen=frozen, datasets=("pages",), changes=changes(), **fields)


@functools.cache
def initial(frozen):
    """The initial state with adapters that are not 0, so that all of them have a gradient."""
    state, rng = step_on(*ONE, frozen=frozen).initial(), np.random.default_rng(0)
    flat = trees.flatten(state.trainable)
    moved = {
        path: 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)
        for path, leaf in flat.items()
        if is_adapter(path)
    }
    assert len(moved) == 2 * len(TARGETS)
    return dataclasses.replace(state, trainable=trees.unflatten(flat | moved))


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["compute", "int8"])
def test_a_step_is_the_same_on_eight_devices(frozen):
    reference = step_on(*ONE, frozen=frozen).run(initial(frozen))
    assert all(np.any(g) for path, g in reference.gradients.items() if is_adapter(path))
    ran = step_on(*EIGHT, frozen=frozen).run(initial(frozen))
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)


@pytest.mark.slow
def test_a_step_on_two_slices_is_the_same(monkeypatch):
    monkeypatch.setattr(mesh_lib, "_slices", in_two_slices)
    reference = step_on(*ONE, frozen="compute").run(initial("compute"))
    make = meshes.step_on.__wrapped__
    ran = step_on(*SIZES, frozen="compute", make=make, slices=2).run(initial("compute"))
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)
