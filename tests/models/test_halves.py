"""Blocks in turn compute what blocks of all rows compute, with the same gradients.

Sums over chips have another order: results agree to 1e-5 of their largest number.
"""

import collections
import dataclasses
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.stack import grouped, layer_slice, scan
from flamingo_jax.models import halves, self_attention
from flamingo_jax.models import lm as lm_lib
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.nn.lora import LoRAConfig
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.distributed.test_compiled_step import instructions

SMALL = LMConfig(vocab_size=32, num_layers=2, width=16, num_heads=4, remat="projections")
OTHERS = {
    "chinchilla": {},
    "norms of heads, biases of all products": {
        "qk_norm": True,
        "attention_bias": True,
        "position": "rotary",
        "remat": "none",
    },
    "blocks alone are kept": {"remat": "full"},
    "one key head for two chips": {"num_kv_heads": 2, "position": "rotary", "activation": "swiglu"},
    "some layers are local": {"global_every": 2, "sliding_window": 3, "position": "rotary"},
}
MESH = MeshConfig(1, 2, 4, halves=True)


def config_of(name):
    return dataclasses.replace(SMALL, **OTHERS[name])


def run(config, x, segment, *, in_turn, groups=1):
    """Runs the blocks, in equal groups; all their weights are trained."""
    stack = lm_lib.block_stack(config, self_attention.packed_context(segment), name="blocks")
    inputs = lm_lib.inputs_of(config, None)
    weights = stack.weights(x, layer_slice(inputs, 0))
    own = (stack.numbers(weights), inputs, weights)
    if not in_turn:
        return stack.scan_of({}, x, own)[0]
    assert halves.are_possible(config, x, None)

    def group(x, own):
        return halves.join(stack.body_of({}, halves.split(x), own)), None

    return scan(group, x, grouped(own, groups))[0]


RUN = hk.transform(run)


@pytest.mark.parametrize(
    ("name", "sums"),
    [("chinchilla", "reduce_scatter"), *((name, "all_to_all") for name in OTHERS)],
)
def test_blocks_in_turn_are_the_blocks(name, sums):
    config, mesh = config_of(name), dataclasses.replace(MESH, sums=sums)
    x, direction = jax.random.normal(jax.random.key(0), (2, 16, 6, 16))
    segment = jnp.asarray(np.sort(np.random.default_rng(0).integers(1, 4, size=(16, 6))))
    params = RUN.init(jax.random.key(1), config, x, segment, in_turn=False)
    leaves, tree = jax.tree.flatten(params)  # biases are not 0
    noise = jax.random.split(jax.random.key(2), len(leaves))
    moved = (w + 0.1 * jax.random.normal(k, w.shape) for w, k in zip(leaves, noise, strict=True))
    params = jax.tree.unflatten(tree, moved)

    def results(params, x, *, in_turn):
        apply = lambda params, x: RUN.apply(params, None, config, x, segment, in_turn=in_turn)
        y, pull = jax.vjp(apply, params, x)
        return y, pull(direction)

    expected = jax.jit(lambda *args: results(*args, in_turn=False))(params, x)
    with with_layout(mesh.layout(make_mesh(mesh))):
        found = jax.jit(lambda *args: results(*args, in_turn=True))(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.any(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.max(np.abs(other)))


@pytest.mark.parametrize("groups", [1, 2], ids=["outside a loop", "in a loop"])
@pytest.mark.parametrize("remat", ["projections", "full"])
def test_no_collective_is_made_twice(remat, groups):
    """Frozen groups of 2 blocks x 2 parts x 2 halves, forward and backward.

    With remat "full" the backward pass makes the sums of 2 blocks again, except for the last, and
    gathers again.
    """
    config = dataclasses.replace(SMALL, remat=remat, num_layers=2 * groups)
    x, segment = jnp.zeros((16, 6, 16)), jnp.ones((16, 6), jnp.int32)
    params = RUN.init(jax.random.key(1), config, x, segment, in_turn=False)
    mesh = dataclasses.replace(MESH, sums="all_to_all")

    def both(params, x, dy):
        apply = lambda x: RUN.apply(params, None, config, x, segment, in_turn=True, groups=groups)
        y, pull = jax.vjp(apply, x)
        return y, pull(dy)

    with with_layout(mesh.layout(make_mesh(mesh))):
        text = jax.jit(both).lower(params, x, x).compile().as_text()
    found = collections.Counter(instruction.opcode for instruction, _ in instructions(text))
    made = (found["all-to-all"], found["all-gather"])
    assert made == (16, 16) if remat == "projections" else made == (20, 24)


def test_gradients_of_a_group_are_joined_and_not_added():
    """A sum would be of one array of the size of the group for each of its blocks."""
    x, segment = jnp.zeros((16, 6, 16)), jnp.ones((16, 6), jnp.int32)
    params = RUN.init(jax.random.key(1), SMALL, x, segment, in_turn=False)
    loss = lambda params: jnp.sum(RUN.apply(params, None, SMALL, x, segment, in_turn=True))
    with with_layout(MESH.layout(make_mesh(MESH))):
        text = jax.jit(jax.grad(loss)).lower(params).as_text()
    up = r"tensor<2x16x64xf32>"  # of both blocks
    assert re.search(rf"stablehlo.concatenate .* {up}", text)
    assert not re.search(rf"stablehlo.(add|pad) .*{up}", text)


def test_halves_have_rows_of_every_chip_and_join_to_the_batch():
    x = jnp.arange(48.0).reshape(8, 3, 2)
    apart = halves.split(x)
    np.testing.assert_array_equal(apart.x[1], x[1::2])
    np.testing.assert_array_equal(halves.join(apart), x)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"norm_place": "after"}, 16),
        ({"norm_place": "both"}, 16),
        ({"parallel_residual": True}, 16),
        ({"lora": LoRAConfig(targets=("query",))}, 16),
        ({}, 8),  # one for each chip
        ({}, 24),  # three for each chip
    ],
)
def test_what_halves_do_not_serve_is_computed_whole(changes, rows):
    other = dataclasses.replace(SMALL, **changes)
    x = jnp.zeros((rows, 6, 16))
    assert not halves.are_possible(SMALL, jnp.zeros((16, 6, 16)), None), "there is no layout"
    with with_layout(MESH.layout(make_mesh(MESH))):
        assert halves.are_possible(SMALL, jnp.zeros((16, 6, 16)), None)
        assert not halves.are_possible(SMALL, jnp.zeros((16, 6, 16)), cache={})
        assert not halves.are_possible(other, x, None)


@pytest.mark.parametrize(
    "changes", [{"halves": False}, {"sequence_parallel": False}, {"data": 8, "model": 1}]
)
def test_meshes_without_halves(changes):
    mesh = dataclasses.replace(MESH, **changes)
    with with_layout(mesh.layout(make_mesh(mesh))):
        assert not halves.are_possible(SMALL, jnp.zeros((16, 6, 16)), None)
