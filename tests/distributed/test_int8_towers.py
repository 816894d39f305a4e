"""A training step with towers in 8 bits: the same on a mesh, and without a float copy of them."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.precision import is_int8
from tests.distributed import meshes

ONE, SPLIT = (1, 1, 1), (1, 2, 4)


@pytest.fixture(scope="module")
def on_mesh():
    return meshes.step_on(*SPLIT, frozen="int8")


@pytest.fixture(scope="module")
def start(on_mesh):
    """The state that the other tests of meshes start from, with its towers rounded."""
    return on_mesh.initial()


@pytest.fixture(scope="module")
def ran(on_mesh, start):
    return on_mesh.run(start)


def test_a_step_is_that_of_the_rounded_weights_in_float32_on_one_device(ran, start):
    """The gradients of all trained weights pass through the towers' products.

    5e-5 of their size: the scale is multiplied after the sum and not before it, and sums have
    another order.
    """
    whole = lambda leaf: np.asarray(leaf.to_float()) if is_int8(leaf) else leaf
    frozen = jax.tree.map(whole, start.frozen, is_leaf=is_int8)
    step = meshes.step_on(*ONE)
    reference = step.run(dataclasses.replace(start, frozen=frozen))
    for name, number in reference.metrics.items():
        np.testing.assert_allclose(ran.metrics[name], number, rtol=5e-5, atol=1e-7, err_msg=name)
    for path, expected in reference.gradients.items():
        error = 5e-5 * np.max(np.abs(expected))
        np.testing.assert_allclose(ran.gradients[path], expected, rtol=0, atol=error, err_msg=path)


def test_frozen_weights_stay_in_8_bits_and_their_scales_are_split_as_they_are(ran, start):
    after = trees.flatten(ran.state.frozen)
    jax.tree.map(np.testing.assert_array_equal, ran.state.frozen, start.frozen)
    rounded = {path: leaf for path, leaf in after.items() if is_int8(leaf)}
    qkv = rounded["flamingo/lm/blocks/block/attention/qkv/w"]
    out = rounded["flamingo/lm/blocks/block/attention/out/w"]
    assert qkv.values.sharding.spec[2] == "model"
    assert qkv.scale.shape == (4, 3, 16, 5, 1)
    assert qkv.scale.sharding.spec[2] == "model"
    assert out.values.sharding.spec[1] == "model"
    assert out.scale.sharding.is_fully_replicated
    sizes = {path: math.prod(leaf.shape) for path, leaf in after.items()}
    assert sum(sizes[path] for path in rounded) > 0.8 * sum(sizes.values())


def test_no_float_copy_of_a_stack_is_in_the_compiled_step(on_mesh):
    """Of no part of the LM's stacks that a chip has; a scan may convert one layer at a time."""
    text = on_mesh.compiled.as_text()
    stacks = {
        path: leaf.values
        for path, leaf in trees.flatten(on_mesh.layout.abstract.frozen).items()
        if is_int8(leaf) and path.startswith("flamingo/lm/blocks")
    }
    assert len(stacks) == 5  # qkv, relative, out, up, down
    for path, values in stacks.items():
        part = values.sharding.shard_shape(values.shape)
        shape = ",".join(map(str, part))
        assert re.search(rf"\bs8\[{shape}\]", text), path
        assert not re.search(rf"\b(f32|bf16)\[{shape}\]", text), f"{path}: float [{shape}]"
