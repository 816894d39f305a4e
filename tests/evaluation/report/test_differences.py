"""Differences of ablations from the base, with one standard error for all rows of a column."""

import numpy as np
import pytest

from flamingo_jax.evaluation.report.differences import differences


def values(rows):
    """{row: {seed: {"score": value}}} of {row: {seed: value}}."""
    return {
        row: {seed: {"score": value} for seed, value in seeds.items()}
        for row, seeds in rows.items()
    }


def test_rows_are_compared_seed_by_seed():
    found = differences(values({"base": {1: 0.9, 2: 0.5}, "worse": {1: 0.8, 2: 0.4}}), ("score",))[
        "worse"
    ]["score"]
    assert found.by_seed == pytest.approx((-0.1, -0.1))
    assert found.mean == pytest.approx(-0.1)
    assert found.error == pytest.approx(0, abs=1e-12)  # what the seed alone changes falls out


def test_the_error_is_that_of_all_rows_together():
    random = np.random.default_rng(0)
    noise, rows, seeds = 0.03, 4_000, 2
    drawn = random.normal(0.1, noise, (rows, seeds))
    found = differences(
        values(
            {
                "base": {1: 0.5, 2: 0.7},
                **{str(row): {1: 0.5 + a, 2: 0.7 + b} for row, (a, b) in enumerate(drawn)},
            }
        ),
        ("score",),
    )
    means = np.array([each["score"].mean for each in found.values()])
    errors = {each["score"].error for each in found.values()}
    assert len(errors) == 1
    assert errors.pop() == pytest.approx(means.std(), rel=0.05)  # it is the spread of the means


def test_a_row_has_the_seeds_that_the_base_has_too():
    found = differences(
        values(
            {"base": {1: 0.5, 2: 0.5}, "a": {1: 0.6, 3: 0.9}, "b": {3: 0.9}, "c": {1: 0.4, 2: 0.6}}
        ),
        ("score",),
    )
    assert set(found) == {"a", "c"}
    assert found["a"]["score"].by_seed == pytest.approx((0.1,))
    # of one seed the error is that of a mean of two, times the root of 2
    assert found["a"]["score"].error == pytest.approx(found["c"]["score"].error * 2**0.5)


def test_one_seed_says_nothing_about_the_error():
    found = differences(values({"base": {1: 0.5}, "a": {1: 0.9}}), ("score",))["a"]["score"]
    assert found.error is None and not found.is_clear


@pytest.mark.parametrize(("shift", "clear"), [(0.5, True), (0.01, False)])
def test_two_standard_errors_are_clear(shift, clear):
    rows = {"base": {1: 0.5, 2: 0.5}, "a": {1: 0.5 + shift, 2: 0.55 + shift}}
    assert differences(values(rows), ("score",))["a"]["score"].is_clear == clear
