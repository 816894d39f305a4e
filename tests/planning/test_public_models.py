"""IDEFICS-80B, imported, fits TPU v4 slices: 16 chips for prompts, 256 chips for training."""

import pytest

from tests.planning.test_full_size import GIB

WEIGHTS = 79_967_841_064


@pytest.mark.tpu_compiler
def test_idefics_80b_decodes_on_16_chips(plan_program):
    data = plan_program("idefics_80b", "v4:2x2x4", "--program=decode")
    assert data["fits"] and data["mesh"] == {"replica": 1, "data": 1, "model": 16}
    assert data["parameters"]["total"] == WEIGHTS
    # Weights in bfloat16 over 16 chips. Decoding needs no encoder and no resampler, and no maps to
    # keys and values of the images: these are in the cache.
    used = WEIGHTS - 630_763_520 - 125_961_984 - 2 * 20 * 1280 * 8192
    assert data["hbm_bytes"]["arguments"] == pytest.approx(2 * used / 16, rel=0.01)
    assert data["hbm_bytes"]["total"] < 16 * GIB


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_idefics_80b_reads_32_shots_on_16_chips(plan_program):
    prompts = ("--program=prefill", "--shots=32", "--length=1024")
    data = plan_program("idefics_80b", "v4:2x2x4", *prompts)
    assert data["fits"] and data["hbm_bytes"]["total"] < 20 * GIB


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_idefics_80b_trains_on_256_chips(plan_program):
    """Only one dataset is planned: each takes as long to compile as the others."""
    data = plan_program("idefics_80b", "v4:4x8x8", "--datasets=laion")
    assert data["fits"] and data["hbm_bytes"]["total"] < 20 * GIB
    assert data["mesh"] == {"replica": 1, "data": 16, "model": 16}
    assert data["mfu"] > 0.25
