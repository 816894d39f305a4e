"""What the compiled step does: the weights that it moves, and its dtypes (paper, B.1.2).

A weight that the model axis splits is known by its size: a multiple of 25 numbers (`meshes`).
"""

import collections
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jaxlib.mlir import ir

from flamingo_jax.core import trees
from flamingo_jax.planning import hlo
from flamingo_jax.planning.collectives import device_groups
from flamingo_jax.sharding.layout import Layout
from tests.distributed import meshes

SIZES = (1, 2, 4)
AXES = ("replica", "data", "model")


class Gather(NamedTuple):
    """An array that an all-gather makes.

    `axes` are the mesh axes that it runs along, `depth` is the number of loops around it.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    depth: int
    name: str

    @property
    def is_weight(self):
        return math.prod(self.shape) % meshes.WEIGHT_FACTOR == 0


def instructions(text):
    """Yields every instruction of a compiled program, with the number of loops around it."""
    module = hlo.parse(text)

    def walk(computation, depth):
        for instruction in computation:
            yield instruction, depth
            for inner, _ in module.branches(instruction):
                yield from walk(inner, depth + (instruction.opcode == "while"))

    return walk(module.computations[module.entry], 0)


def gathers(text, sizes):
    """Returns every all-gather of a compiled program on a mesh of `sizes`."""
    found = []
    places = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=-1)
    for instruction, depth in instructions(text):
        if instruction.opcode not in ("all-gather", "all-gather-start"):
            continue
        members = places[device_groups(instruction.attribute("replica_groups"), len(places))]
        differ = (members != members[:, :1]).any(axis=(0, 1))
        axes = tuple(name for name, differs in zip(AXES, differ, strict=True) if differs)
        for _, shape in hlo.leaves(instruction.type):
            found.append(Gather(shape, axes, depth, instruction.op_name))
    return found


@pytest.fixture(scope="module", params=["whole", "in turn"])
def found(request):
    in_turn = {"halves": True, "sums": "all_to_all"} if request.param == "in turn" else {}
    return gathers(meshes.step_on(*SIZES, **in_turn).compiled.as_text(), SIZES)


def test_no_weight_crosses_the_model_axis_and_none_moves_inside_a_loop(found):
    wrong = [
        gather for gather in found if gather.is_weight and ("model" in gather.axes or gather.depth)
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_loops_gather_over_the_model_axis_alone(found):
    """A chip computes gradients from its own tokens; no chip gathers other rows' activations."""
    wrong = [gather for gather in found if gather.depth and gather.axes != ("model",)]
    assert not wrong, "\n".join(map(str, wrong))


def test_every_weight_is_gathered_once_along_data(found):
    """Each gather has a model shard of a weight, all layers at once, before the first dataset."""
    layout = meshes.step_on(*SIZES).layout
    leaves, shardings = trees.flatten(layout.abstract.trainable), trees.flatten(layout.gathered)
    local = {path: shardings[path].shard_shape(leaf.shape) for path, leaf in leaves.items()}
    expected = collections.Counter(
        s for s in local.values() if math.prod(s) % meshes.WEIGHT_FACTOR == 0
    )
    assert sum(expected.values()) == 6  # query, key, value, out, up, down
    moved = [gather for gather in found if gather.is_weight]
    assert collections.Counter(gather.shape for gather in moved) == expected
    assert {(gather.axes, gather.name) for gather in moved} == {
        (("data",), "jit(step)/optimizer/sharding_constraint")
    }


def test_gathers_of_weights_would_be_found(monkeypatch):
    """If only the residual stream is split by rows, each layer gathers weights over model."""
    place = Layout.activation
    monkeypatch.setattr(
        Layout, "activation", lambda self, x, axes: place(self, x, axes) if axes[0] == "rows" else x
    )
    step = meshes.step_on.__wrapped__(*SIZES, datasets=("pairs",))
    trapped = [
        gather
        for gather in gathers(step.compiled.as_text(), SIZES)
        if gather.is_weight and gather.depth
    ]
    assert any(gather.axes == ("model",) for gather in trapped)


Operation = collections.namedtuple("Operation", ("kind", "operands", "results", "place"))


@pytest.fixture(scope="module", params=["whole", "in turn"])
def operations(request):
    """All operations of the step in bfloat16, before compilation."""
    step = meshes.step_on(*SIZES, compute="bfloat16", halves=request.param == "in turn")
    module, found = step.lowered.compiler_ir("stablehlo"), []

    def dtypes(values):
        return tuple(
            str(v.type.element_type) for v in values if isinstance(v.type, ir.RankedTensorType)
        )

    def visit(operation):
        kind = operation.name.removeprefix("stablehlo.")
        found.append(
            Operation(
                kind, dtypes(operation.operands), dtypes(operation.results), str(operation.location)
            )
        )
        return ir.WalkResult.ADVANCE

    with module.context:
        module.operation.walk(visit)
    return found


def test_no_matrix_product_is_float32(operations):
    """No product of the forward or backward pass has float32 operands.

    Scores and logits are summed in float32, from bfloat16 operands.
    """
    products = [
        operation for operation in operations if operation.kind in ("dot_general", "convolution")
    ]
    assert len(products) > 50
    wrong = [operation for operation in products if set(operation.operands) != {"bf16"}]
    assert not wrong, "\n".join(
        f"{operation.operands} {operation.place[:160]}" for operation in wrong
    )


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (
            "rsqrt",
            (
                "query_norm",
                "mlp_norm",
                "attention_norm",
                "final_norm",
                "latents_norm",
                "media_norm",
            ),
        ),
        (
            "exponential",
            # softmaxes of the towers and of the loss
            ("attention/exp", "_attend/block/exp", "token_losses)/flamingo/exp"),
        ),
        ("log", ("token_losses)/flamingo/log",)),
        ("log_plus_one", ("token_losses)/flamingo/log1p",)),
        ("sqrt", ("optimizer/sqrt",)),
    ],
)
def test_norms_softmaxes_loss_and_moments_are_float32(operations, kind, where):
    found = [operation for operation in operations if operation.kind == kind]
    for place in where:
        assert any(place in operation.place for operation in found), f"no {kind} at {place}"
    wrong = [
        operation for operation in found if set(operation.operands + operation.results) != {"f32"}
    ]
    assert not wrong, "\n".join(operation.place[:160] for operation in wrong)


def test_scores_and_logits_are_summed_in_float32(operations):
    for letters in ("blghk,bsgk->bghls", "blhk,shk->bhls", "btd,vd->btv", "btd,nd->btn"):
        forward = [
            o
            for o in operations
            if o.kind == "dot_general" and letters in o.place and "transpose" not in o.place
        ]
        assert any(operation.results == ("f32",) for operation in forward), letters


def test_the_optimizers_state_is_float32_and_frozen_weights_are_not():
    step = meshes.step_on(*SIZES, compute="bfloat16")
    state = step.layout.abstract
    assert {leaf.dtype for leaf in jax.tree.leaves(state.frozen)} == {np.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {np.dtype("float32")}
    kept, adam, *_ = state.opt_state[0], state.opt_state[1][1]
    # The sum of the gradients over the datasets, and the moments.
    for tree in (kept.trace, adam.mu, adam.nu):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}
    out, metrics = step.lowered.out_info
    assert jax.tree.map(lambda leaf: leaf.dtype, out) == jax.tree.map(
        lambda leaf: leaf.dtype, state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype("float32")}
