"""Weights in 8 bits: the bound of the rounding, and casts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.precision import Int8Weight, Policy, arrays_of, dtype_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "contracted"), [((6, 4), (0,)), ((2, 3, 5, 4), (1, 2)), ((7, 8), (1,))]
)
def test_a_rounded_weight_is_within_half_a_scale(shape, contracted):
    """And the largest weight of each output channel is 127 or -127."""
    w = RNG.normal(size=shape).astype(np.float32) * 10.0 ** RNG.integers(-9, 9, shape[-1])
    rounded = Int8Weight.of(jnp.asarray(w), contracted)
    assert rounded.values.dtype == jnp.int8 and rounded.scale.dtype == jnp.float32
    assert rounded.shape == shape and rounded.dtype == jnp.float32
    error, scale = np.abs(w - rounded.to_float()), np.asarray(rounded.scale)
    assert np.all(error <= scale / 2 * (1 + 1e-6))
    assert scale.shape == tuple(1 if i in contracted else n for i, n in enumerate(shape))
    assert np.all(np.max(np.abs(rounded.values), axis=contracted) == 127)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38])
def test_channels_of_zeros_and_of_the_smallest_numbers_are_finite(size):
    rounded = Int8Weight.of(jnp.full((4, 1), size, jnp.float32), (0,))
    assert np.all(np.isfinite(rounded.scale)) and np.all(rounded.scale > 0)
    np.testing.assert_allclose(rounded.to_float(), size, atol=1e-38)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_found_in_the_scale(value):
    rounded = Int8Weight.of(jnp.asarray([[1.0, 2.0], [value, 3.0]]), (0,))
    assert np.isfinite(rounded.scale).tolist() == [[False, True]]


def test_a_policy_casts_all_but_integers_and_scales():
    weights = {"a": {"w": Int8Weight.of(jnp.ones((2, 3)), (0,)), "b": jnp.ones(3)}}
    cast = jax.jit(Policy("bfloat16").cast)(weights)
    w = cast["a"]["w"]
    assert (w.values.dtype, w.scale.dtype) == (jnp.int8, jnp.float32)
    assert w.dtype == cast["a"]["b"].dtype == dtype_of({"a": {"w": w}}) == jnp.bfloat16
    named = arrays_of({"a/w": w, "a/b": cast["a"]["b"]})
    assert {path: leaf.dtype.name for path, leaf in named.items()} == {
        "a/w/int8": "int8",
        "a/w/scale": "float32",
        "a/b": "bfloat16",
    }
