"""The contrastive stage on a slice: its collectives, and the paper's run (2.1, B.1.3)."""

import pytest

from configs import contrastive_f6
from flamingo_jax.core.config import from_dict
from flamingo_jax.planning import flops, planner, summary
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective
from tests.training import small

GIB = 2**30
ROWS, JOINT = 1024, 1376


@pytest.fixture(scope="module")
def planned():
    """The paper's run, with one block in one stage, and a BERT of one layer."""
    described = contrastive_f6.get_config()
    described.model.vision.update(widths=(256,), depths=(1,), strides=(1,), remat="none")
    described.model.text_encoder.update(num_layers=1, width=256, num_heads=4)
    described.data.image_size = 32
    described.data.datasets = {"align": described.data.datasets.align}
    described.data.datasets.align.batch_size = ROWS
    described.mesh.update(replica=2, data=4)
    return planner.make_plan(from_dict(TrainConfig, described), "v4:2x2x2")


@pytest.mark.tpu_compiler
def test_weights_gradients_and_embeddings_cross_the_chips_and_no_activations(planned):
    """Gathers the weights in bfloat16 (ZeRO-1) and the embeddings in float32, nothing else.

    The weights of the NFNet are gathered in each pass (forward and backward). The activations of
    the first block are 1024 x 8 x 8 x 256 numbers, 34 MB: the bound is too small for a gather of
    them.
    """
    data = summary.to_json(planned)
    weights = 2 * data["parameters"]["total"]
    vision = 2 * data["parameters"]["contrastive/vision"]
    embeddings = 4 * ROWS * JOINT
    moved = {"all-gather": 0, "all-reduce": 0}
    for row in data["collectives"]:
        moved[row["kind"]] = moved.get(row["kind"], 0) + row["bytes"]
    assert moved["all-gather"] < weights + 2 * vision + 8 * embeddings
    # A gradient is reduced over the replicas and over data: in all at most twice an all-reduce of 2
    # bytes per weight.
    assert moved["all-reduce"] < 2 * 2 * weights + 8 * embeddings


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
    assert data["mfu"] > 0.1
