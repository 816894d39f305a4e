"""Products with weights in 8 bits are those with the float weights that these stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.precision import Int8Weight, Policy
from flamingo_jax.nn.conv import convolve
from flamingo_jax.nn.linear import product, rows_of, scores_of_rows

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


ROWS, CONV = (lambda x, w, _: scores_of_rows(x, w)), (lambda x, w, _: convolve(x, w))
CASES = {
    "one axis": (normal(2, 3, 6), normal(6, 4, 5), (0,), product),
    "two axes": (normal(2, 3, 4, 5), normal(4, 5, 6), (0, 1), product),
    "contracted last": (normal(2, 3, 6), normal(3, 2, 6), (2,), product),
    "scores of rows": (normal(2, 3, 6), normal(9, 6), (1,), ROWS),
    "1x1 convolution": (normal(2, 3, 3, 6), normal(1, 1, 6, 4), (2,), CONV),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_product_and_its_gradient_are_those_of_the_float_weights(case):
    x, w, contracted, multiply = CASES[case]
    w = Int8Weight.of(w, contracted)

    @jax.jit
    def run(x):
        y, back = jax.vjp(lambda x: multiply(x, w, contracted), x)
        expected, expected_back = jax.vjp(lambda x: multiply(x, w.to_float(), contracted), x)
        dy = jnp.cos(y)
        return (y, *back(dy)), (expected, *expected_back(dy))

    for found, expected in zip(*run(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_products_in_bfloat16_are_rounded_twice_at_most():
    """Once after the sum over the integers and once after the scale: 2 * 2^-8 of the number."""
    x, w = normal(2, 64).astype(jnp.bfloat16), Int8Weight.of(normal(64, 8), (0,))
    w = Policy("bfloat16").cast(w)
    y, dx = jax.jit(lambda x: (product(x, w), jax.grad(lambda x: jnp.sum(product(x, w)))(x)))(x)
    assert y.dtype == dx.dtype == jnp.bfloat16
    expected = np.asarray(x, np.float32) @ np.asarray(w.to_float())
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-7, atol=1e-4)
    scores = scores_of_rows(x[None], Int8Weight.of(normal(8, 64), (1,)))
    assert scores.dtype == jnp.float32


def test_rows_of_a_table_are_the_rounded_ones():
    table = Int8Weight.of(normal(9, 4), (1,))
    ids = jnp.asarray([[0, 8], [3, 3]])
    np.testing.assert_allclose(rows_of(table, ids), table.to_float()[ids], rtol=1e-6)


def test_only_1x1_convolutions_can_be_in_8_bits():
    with pytest.raises(ValueError, match=r"\(3, 3, 6, 4\) convolution is in 8 bits"):
        convolve(normal(1, 5, 5, 6), Int8Weight.of(normal(3, 3, 6, 4), (0, 1, 2)))
