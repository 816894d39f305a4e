"""A language model that is trained takes the same step on every mesh (paper, Table 3, row viii).

Bounds are as in test_step_on_meshes.py. A weight is known by its shape.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.models import frozen
from flamingo_jax.planning import hlo
from flamingo_jax.sharding import mesh as mesh_lib
from flamingo_jax.sharding.mesh import MeshConfig
from tests.distributed import meshes
from tests.distributed.test_compiled_step import gathers
from tests.distributed.test_slices import SIZES, in_two_slices
from tests.distributed.test_step_on_meshes import assert_same_step

ONE, EIGHT = (1, 1, 1), (1, 2, 4)
# What a loop may do with a whole stack: pass it on, and write one layer into it in place.
PASSED_ON = ("parameter", "tuple", "get-tuple-element", "while", "bitcast", "optimization-barrier")


def changes():
    run = meshes.run_config(MeshConfig())
    lm = dataclasses.replace(run.model.lm, position="learned")  # compiles quickly
    return ("unfrozen", ("lm",)), ("model", dataclasses.replace(run.model, lm=lm))


def step_on(*sizes, make=meshes.step_on, **fields):
    return make(*sizes, datasets=("pages",), changes=changes(), **fields)


@functools.cache
def initial():
    return step_on(*ONE).initial()


@pytest.fixture(scope="module")
def reference():
    return step_on(*ONE).run(initial())


def in_chunks(num_shards):
    made = meshes.batches(2 * num_shards)
    return {name: dataclasses.replace(batch, chunks=2) for name, batch in made.items()}


def test_a_step_in_chunks_is_the_same_on_eight_devices(reference):
    ran = step_on(*EIGHT, made=in_chunks).run(initial())
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)


@pytest.mark.parametrize(
    "sums", ["reduce_scatter", pytest.param("all_to_all", marks=pytest.mark.slow)]
)
def test_a_step_in_two_halves_of_the_rows_is_the_same(sums, reference):
    ran = step_on(*EIGHT, halves=True, sums=sums).run(initial())
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)


def test_a_step_on_two_slices_is_the_same(monkeypatch, reference):
    monkeypatch.setattr(mesh_lib, "_slices", in_two_slices)
    ran = step_on(*SIZES, make=meshes.step_on.__wrapped__, slices=2).run(initial())
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)


def test_every_weight_of_the_language_model_moves_and_is_split_by_zero(reference):
    before = trees.flatten(initial().trainable)
    of_lm = [path for path in before if path.startswith("flamingo/lm/")]
    assert len(of_lm) == 13
    for path in of_lm:
        assert np.max(np.abs(reference.weights[path] - before[path])) > 1e-6, path
    kept = trees.flatten(step_on(*EIGHT, made=in_chunks).layout.abstract.trainable)
    for path in (each for each in of_lm if each.endswith(("/w", "/embedding"))):
        shape = kept[path].shape
        assert math.prod(kept[path].sharding.shard_shape(shape)) * 8 == math.prod(shape), path


def made_in_loops(step):
    """Returns the arrays that loops of a compiled step make for the weights of all layers.

    Passing such an array on is left out, and so is writing one layer into it in place.
    """
    module, found = hlo.parse(step.compiled.as_text()), []
    trained = trees.flatten(step.layout.abstract.trainable).items()
    stacks = {leaf.shape for path, leaf in trained if "lm/blocks" in path and path.endswith("/w")}
    stacks |= {(2, 2, *shape[1:]) for shape in stacks}  # in groups of two layers

    def is_write(instruction):
        inner = [each for name in instruction.called for each in module.computations[name]]
        return instruction.opcode == "dynamic-update-slice" or any(map(is_write, inner))

    def walk(computation, depth):
        for instruction in computation:
            is_stack = any(shape in stacks for _, shape in hlo.leaves(instruction.type))
            is_allowed = instruction.opcode in PASSED_ON or is_write(instruction)
            if depth and is_stack and not is_allowed:
                found.append((instruction.opcode, instruction.type, instruction.op_name))
            for inner, _ in module.branches(instruction):
                walk(inner, depth + (instruction.opcode == "while"))

    walk(module.computations[module.entry], 0)
    return found


def test_no_gradient_of_all_layers_is_made_in_a_loop_over_the_layers():
    assert not made_in_loops(step_on(*ONE))


@pytest.mark.slow
def test_gradients_of_all_layers_would_be_found(monkeypatch):
    """A block that takes trained weights by its number has gradients of the size of all blocks."""
    monkeypatch.setattr(frozen, "trains", lambda unfrozen: lambda path: False)
    step = step_on(*ONE, make=meshes.step_on.__wrapped__)
    assert any(opcode == "add" for opcode, *_ in made_in_loops(step))


def test_no_weight_crosses_the_model_axis_and_none_is_gathered_in_a_loop():
    text = step_on(*EIGHT, made=in_chunks).compiled.as_text()
    found = [each for each in gathers(text, EIGHT) if each.is_weight]
    assert len(found) > 12  # those of the cross-attention and of the language model
    wrong = [each for each in found if "model" in each.axes or each.depth]
    assert not wrong, "\n".join(map(str, wrong))
