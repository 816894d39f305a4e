"""Reasons of orbax and TensorStore in one line."""

import pytest

from flamingo_jax.checkpoint.arrays import cause


@pytest.mark.parametrize("length", [10, 290, 295, 300, 301, 2000])
def test_a_cause_is_whole_or_shows_that_its_middle_is_left_out(length):
    text = "".join(chr(ord("a") + i * i % 26) for i in range(length))
    start, dots, end = cause(ValueError(text)).partition(" ... ")
    assert bool(dots) == (length > 300)
    if not dots:
        assert start == f"ValueError: {text}"
    else:
        assert text.startswith(start.removeprefix("ValueError: ")) and text.endswith(end)
