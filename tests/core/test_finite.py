"""Numbers that are not finite are refused with their place, and never written as JSON."""

import json

import ml_dtypes
import numpy as np
import pytest

from flamingo_jax.core import paths
from flamingo_jax.core.finite import NonFiniteError, finite, without_non_finite


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_is_found_in_every_dtype(dtype, bad):
    values = np.ones((3, 4), dtype)
    assert finite(values, "features") is values
    values[2, 1] = bad
    message = f"^Features are not finite: 1 of 12 numbers, the first is {bad} in row 2. Do this.$"
    with pytest.raises(NonFiniteError, match=message):
        finite(values, "features", why=lambda: "Do this.")


def test_lists_and_nothing():
    assert finite([0.0, 1.5], "values").tolist() == [0.0, 1.5]
    assert finite([True, False], "values").tolist() == [True, False]
    assert finite([], "values").size == 0
    with pytest.raises(NonFiniteError, match="^Values are not finite: 2 of 3 numbers"):
        finite((1.0, float("nan"), float("inf")), "values")


def test_it_is_a_wrong_value_and_a_floating_point_error():
    assert issubclass(NonFiniteError, ValueError) and issubclass(NonFiniteError, FloatingPointError)


def test_json_has_none_in_the_place_of_nan():
    value = {"a": [1.0, float("nan"), {"b": float("-inf")}], "c": ("text", 2, None, True)}
    plain = without_non_finite(value)
    assert plain == {"a": [1.0, None, {"b": None}], "c": ["text", 2, None, True]}
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_json_file_with_nan_is_not_written(tmp_path, bad):
    with pytest.raises(NonFiniteError, match=r"results.json: a number is NaN or infinite"):
        paths.write_json(tmp_path / "results.json", [{"value": bad}])
    assert list(tmp_path.iterdir()) == []
