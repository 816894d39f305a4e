"""The contrastive stage on a slice: its collectives, and the paper's run (2.1, B.1.3)."""

import collections
from typing import NamedTuple

import pytest

from configs import contrastive_f6
from flamingo_jax.core.config import from_dict
from flamingo_jax.planning import cost, flops, hlo, program, topologies
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective
from tests.training import small

GIB = 2**30
ROWS, JOINT = 1024, 1376


class Compiled(NamedTuple):
    text: str
    weights: dict[str, int]  # parameters by group
    moved: dict[str, int]  # bytes that a chip receives, by kind of collective


@pytest.fixture(scope="module")
def compiled():
    """The paper's run, with one block of its widest stage, and a BERT of one layer."""
    described = contrastive_f6.get_config()
    described.model.vision.update(widths=(1536,), depths=(1,), strides=(1,), remat="none")
    described.model.text_encoder.update(num_layers=1, width=256, num_heads=4)
    described.data.image_size = 32
    described.data.datasets = {"align": described.data.datasets.align}
    described.data.datasets.align.batch_size = ROWS
    described.mesh.update(replica=2, data=4)
    config, slice_ = from_dict(TrainConfig, described), topologies.describe("v4:2x2x2")
    mesh = make_mesh(config.mesh, topologies.devices(slice_))
    step = program.train(config, mesh, {})
    with topologies.uncached():
        text = step.lowered.compile().as_text()
    moved: dict[str, int] = collections.Counter()
    for row, sums in cost.analyse(text, mesh, slice_).rows.items():
        moved[row.kind] += sums.num_bytes
    return Compiled(text, step.parameters, moved)


@pytest.mark.tpu_compiler
def test_weights_gradients_and_embeddings_cross_the_chips_and_no_activations(compiled):
    """Gathers the weights in bfloat16 (ZeRO-1) and the embeddings in float32, nothing else.

    The weights of the NFNet are gathered twice: as they are, and standardised. Forward and backward
    pass use the same copies. The activations of the block are 1024 x 8 x 8 x 1536 numbers, 201 MB:
    the bounds are too small for a gather of them.
    """
    weights, vision = 2 * compiled.weights["total"], 2 * compiled.weights["contrastive/vision"]
    embeddings = 4 * ROWS * JOINT
    others = 3 / 4  # what a chip receives: three of four parts
    assert compiled.moved["all-gather"] < others * (weights + vision) + 4 * embeddings
    # A gradient is reduced over the replicas and over data: in all at most twice an all-reduce of 2
    # bytes per weight.
    assert compiled.moved["all-reduce"] < 2 * 2 * weights + 8 * embeddings


@pytest.mark.tpu_compiler
def test_a_standardised_kernel_is_gathered_once_in_a_pass(compiled):
    """4 kernels of the stem, and 2 of the block; the compiler may join some in one gather."""
    gathered = [
        shape
        for computation in hlo.parse(compiled.text).computations.values()
        for instruction in computation
        if instruction.opcode in ("all-gather", "all-gather-start")
        and "/vision/" in instruction.op_name
        for _, shape in hlo.leaves(instruction.type)
        if shape[:2] == (3, 3)
    ]
    assert sorted(gathered) == [
        *((3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64), (3, 3, 64, 128)),
        *[(3, 3, 128, 768)] * 2,
    ]


def test_rows_of_a_merged_batch_are_compared_with_all_others():
    """6 + 4 rows are 10^2 similarities of 8 numbers, in separate batches only 6^2 + 4^2.

    Each number is 2 FLOPs in the forward pass and 4 in the backward pass.
    """
    described = small.get_config("contrastive")
    captions = described.data.datasets.captions
    described.data.datasets = dict.fromkeys(("align", "ltip"), captions)
    found = {}
    for mixing in ("accumulate", "merged"):
        described.mixing = mixing
        config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
        fills = {"align": flops.Fill(6, 5, 6, 1), "ltip": flops.Fill(4, 5, 4, 1)}
        objective = build_objective(config, num_shards=1)
        found[mixing] = flops.of_update(config, objective, fills).flops
    more = found["merged"]["contrastive"] - found["accumulate"]["contrastive"]
    assert more == 3 * 2 * 8 * (10**2 - 6**2 - 4**2)
    assert found["merged"]["vision"] == found["accumulate"]["vision"]


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_the_papers_run_fits_its_512_chips(plan_program):
    data = plan_program("contrastive_f6", "v4:8x8x8")
    assert data["fits"] and data["hbm_bytes"]["total"] < 32 * GIB
    assert data["chips"] == 512
    assert data["parameters"]["contrastive/vision"] == pytest.approx(435.3e6, rel=1e-3)
    images = 2 * 16_384
    vision = 3 * images * 2 * 94.44e9  # per-image FLOPs of the authors' repository
    assert data["model_flops_by_part"]["vision"] == pytest.approx(vision, rel=1e-3)
    assert data["mfu"] > 0.21
