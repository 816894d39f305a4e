"""Metrics go through JSON without losing a bit."""

import json
import math

import numpy as np
import pytest

from flamingo_jax.training.unreported import from_json, to_json


def test_all_bits_come_back():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, size=1000, dtype=np.uint64).view(np.float64)
    special = np.array([0.0, -0.0, 1 / 3, 5e-324, math.inf, -math.inf, math.nan])
    row = {"loss": np.array(0.1), "gates": np.concatenate([bits, special]).reshape(19, 53)}
    ((step, back),) = from_json(json.loads(json.dumps(to_json([(7, row)]), allow_nan=False)))
    assert step == 7 and back["loss"].dtype == back["gates"].dtype == np.float64
    np.testing.assert_array_equal(back["loss"], row["loss"])
    np.testing.assert_array_equal(back["gates"], row["gates"])
    finite = np.isfinite(row["gates"])
    assert (back["gates"].view(np.uint64) == row["gates"].view(np.uint64))[finite].all()


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "5",
        '{"a": 1}',
        '["ab"]',
        "[[1]]",
        "[[1, 2]]",
        '[["1", {}]]',
        '[[1, {"loss": 0.5}]]',
        '[[1, {"loss": "x"}]]',
        '[[1, {"loss": "0x1p+9999"}]]',
        '[[1, {"loss": [["0x1p+0"], "0x1p+0"]}]]',
    ],
)
def test_other_values_are_refused(text):
    with pytest.raises(ValueError, match=r"^got .+, expected \[\[STEP, {METRIC: NUMBER}\], ...\]$"):
        from_json(json.loads(text))
