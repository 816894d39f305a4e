"""On several slices the gradients of an update cross the network between them once."""

import dataclasses
import math

import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.planning import hlo
from flamingo_jax.planning.collectives import device_groups
from flamingo_jax.sharding import mesh as mesh_lib
from tests.distributed import meshes
from tests.distributed.test_step_on_meshes import assert_same_step

SIZES = (2, 2, 2)


def in_two_slices(devices, number):
    """Returns the devices of each slice: simulated devices have no slice index."""
    size = len(devices) // number
    return [list(devices[i * size : (i + 1) * size]) for i in range(number)]


def step(number_of_chunks=1, **fields):
    """Returns the step on the mesh with these fields of MeshConfig."""

    def made(num_shards):
        found = meshes.batches(num_shards * number_of_chunks)
        return {
            name: dataclasses.replace(batch, chunks=number_of_chunks)
            for name, batch in found.items()
        }

    return meshes.step_on.__wrapped__(*SIZES, made=made, **fields)


def moved(text, sizes, across):
    """Returns (kind, size, loops around it) of each array that crosses this axis of the mesh."""
    module, found = hlo.parse(text), []
    place = np.unravel_index(np.arange(math.prod(sizes)), sizes)[mesh_lib.AXES.index(across)]

    def walk(computation, depth):
        for instruction in computation:
            if instruction.opcode in ("all-reduce", "reduce-scatter", "all-gather", "all-to-all"):
                groups = device_groups(instruction.attribute("replica_groups"), len(place))
                if np.any(place[groups] != place[groups[:, :1]]):
                    found.extend(
                        (instruction.opcode, math.prod(shape), depth)
                        for _, shape in hlo.leaves(instruction.type)
                    )
            for inner, _ in module.branches(instruction):
                walk(inner, depth + (instruction.opcode == "while"))

    walk(module.computations[module.entry], 0)
    return found


@pytest.mark.parametrize("number_of_chunks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_cross_the_slices_once_and_the_step_is_the_same(monkeypatch, number_of_chunks):
    """Each chip sends its part of each weight's gradient: once, not once for each dataset."""
    monkeypatch.setattr(mesh_lib, "_slices", in_two_slices)
    own = step(number_of_chunks, slices=2)
    ran = own.first
    assert_same_step(ran.gradients, ran.weights, ran.metrics, meshes.step_on(1, 1, 1).first)
    found = moved(own.compiled.as_text(), SIZES, "replica")
    assert {kind for kind, _, _ in found} == {"all-reduce"}
    assert not any(depth for _, _, depth in found)
    shardings = trees.flatten(own.layout.shardings.trainable)
    parts = [
        math.prod(shardings[path].shard_shape(leaf.shape))
        for path, leaf in trees.flatten(own.layout.abstract.trainable).items()
    ]
    numbers = sorted(size for _, size, _ in found)
    few = len(numbers) - len(parts)  # losses, and the weights of the batches
    assert 0 < few < 12 and numbers[:few] == [1] * few
    assert numbers[few:] == sorted(parts)
