"""The cost of decoding and scoring: the compiler's count of FLOPs for a model with one layer.

The benchmark programs print the same for larger models.
"""

import pytest

from tests.benchmarks.decoding import TEXT, Size, forward_flops, step_flops
from tests.benchmarks.scoring import score_flops

SIZE = Size(layers=1, width=64, latents=8, vocabulary=256)
HEADS = 2


def test_a_decoded_token_costs_more_shots_no_more_than_their_attention():
    """For each position: 4 D for keys and values, 2 D for distances, some for the softmax."""
    none, four, many = (step_flops(SIZE, (shots + 1) * TEXT) for shots in (0, 4, 32))
    # The cost is linear in the position.
    assert four - none == pytest.approx(4 * TEXT * (many - four) / (28 * TEXT), rel=1e-3)
    assert 4 * SIZE.width < (many - none) / (32 * TEXT) < 6 * SIZE.width + 40 * HEADS
    assert forward_flops(SIZE, 4) > 50 * four  # what each token costs without a cache


def test_candidates_share_one_prefill():
    """Each candidate of T tokens costs T - 1 decoding steps; its first token costs nothing."""
    length, shots = 4, 4
    prefill = score_flops(SIZE, shots=shots, count=1, length=1)
    assert score_flops(SIZE, shots=shots, count=8, length=1) == pytest.approx(prefill, rel=1e-4)
    step = step_flops(SIZE, (shots + 1) * TEXT + length)
    for count in (1, 8):
        extra = score_flops(SIZE, shots=shots, count=count, length=length) - prefill
        assert 0.8 * step < extra / (count * (length - 1)) < 1.1 * step
