"""Weight-standardised convolutions: statistics, groups, strides, folding, dtypes."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.axes import with_layout
from flamingo_jax.core.params import axes_of
from flamingo_jax.nn import conv
from flamingo_jax.nn.conv import convolve, standardise_weights, ws_conv
from tests.sharding.chips import Single


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _layer(**kwargs):
    return hk.without_apply_rng(hk.transform(lambda x: ws_conv(x, name="conv", **kwargs)))


def test_standardised_weights_have_mean_0_and_deviation_gain_over_root_fan_in():
    gain = jnp.arange(1.0, 9.0)
    w = np.asarray(standardise_weights(3 + 5 * _normal(0, 3, 3, 4, 8), gain), np.float64)
    np.testing.assert_allclose(w.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(w.std((0, 1, 2)) * (3 * 3 * 4) ** 0.5, gain, rtol=1e-5)


def test_constant_weights_become_0_and_not_nan():
    np.testing.assert_array_equal(standardise_weights(jnp.full((3, 3, 4, 8), 0.25), jnp.ones(8)), 0)


def test_stacked_layers_are_standardised_each_on_its_own():
    w, gain = _normal(0, 2, 3, 3, 4, 8), _normal(1, 2, 8)
    together = standardise_weights(w, gain)
    for i in range(2):
        np.testing.assert_array_equal(together[i], standardise_weights(w[i], gain[i]))


@pytest.mark.parametrize(("stride", "kernel", "size"), [(1, 3, 5), (2, 3, 5), (2, 3, 4), (1, 1, 4)])
def test_convolution_against_explicit_sums(stride, kernel, size):
    """Tolerance 1e-5: float32 sums of 36 products of order 1."""
    x, w = _normal(0, 2, size, size, 4), _normal(1, kernel, kernel, 4, 6)
    out = -(-size // stride)
    # SAME puts the odd row of padding at the end
    before = max((out - 1) * stride + kernel - size, 0) // 2
    padded = np.zeros((2, size + 2 * kernel, size + 2 * kernel, 4))
    padded[:, before : before + size, before : before + size] = x
    expected = np.empty((2, out, out, 6))
    for row in range(out):
        for column in range(out):
            window = padded[
                :, row * stride : row * stride + kernel, column * stride : column * stride + kernel
            ]
            expected[:, row, column] = np.einsum("mijc,ijco->mo", window, np.asarray(w, np.float64))
    np.testing.assert_allclose(convolve(x, w, stride=stride), expected, atol=1e-5)


def test_groups_do_not_see_each_other():
    layer = _layer(channels=6, kernel=3, groups=2)
    x = _normal(0, 1, 4, 4, 4)
    params = jax.jit(layer.init)(jax.random.key(0), x)
    assert params["conv"]["w"].shape == (3, 3, 2, 6)
    changed = layer.apply(params, x.at[..., 2:].add(1.0)) - layer.apply(params, x)
    np.testing.assert_array_equal(changed[..., :3], 0)
    assert np.abs(changed[..., 3:]).max(axis=(0, 1, 2)).min() > 0


@pytest.mark.parametrize("stride", [1, 2])
def test_group_by_group_is_the_grouped_convolution(stride):
    """Values and gradients; 1e-5: float32 sums of up to 50 terms in another order."""
    x, w = _normal(0, 2, 5, 5, 6), _normal(1, 3, 3, 2, 9)

    def run(form):
        loss = lambda x, w: (jnp.sum(jnp.sin(y := form(x, w, stride, 3))), y)
        return jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, w))

    def as_one(x, w, stride, groups):
        return conv._convolve(x, conv._without_groups(w, groups), stride)

    for form in (conv._group_by_group, as_one):
        for found, expected in zip(run(form), run(conv._convolve), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("platform", "groups", "counts"),
    [
        ("cpu", 3, [1, 1, 1]),
        ("gpu", 3, [3]),
        ("gpu", 2, [2]),
        ("tpu", 3, [3]),
        ("tpu", 2, [1]),
        (None, 2, [2]),
    ],
)
def test_the_form_of_a_grouped_convolution_on_each_platform(platform, groups, counts):
    """The platform is that of the layout: the planner compiles for a TPU in a process of CPUs."""

    def run(x, w):
        with with_layout(platform and Single(platform).layout):
            return convolve(x, w, groups=groups)

    x, w = _normal(0, 2, 4, 4, 2 * groups), _normal(1, 3, 3, 2, 6)
    found = [
        own.params["feature_group_count"]
        for own in jax.make_jaxpr(run)(x, w).eqns
        if own.primitive is jax.lax.conv_general_dilated_p
    ]
    assert found == counts


def test_groups_that_do_not_divide_the_channels_are_an_error():
    with pytest.raises(
        ValueError, match="'conv': 3 groups must divide 4 input and 6 output channels"
    ):
        _layer(channels=6, kernel=3, groups=3).init(jax.random.key(0), jnp.ones((1, 4, 4, 4)))


def test_folded_layer_takes_standardised_weights_and_has_no_gain():
    x = _normal(0, 1, 4, 4, 4)
    apply, folded = (
        _layer(channels=6, kernel=3, standardisation=kind) for kind in ("apply", "folded")
    )
    params = apply.init(jax.random.key(0), x)
    params["conv"] |= {"gain": _normal(1, 6), "bias": _normal(2, 6)}
    assert jax.tree.structure(folded.init(jax.random.key(0), x)) == jax.tree.structure(
        {"conv": {"bias": 0, "w": 0}}
    )
    weights = {
        "conv": {
            "w": standardise_weights(params["conv"]["w"], params["conv"]["gain"]),
            "bias": params["conv"]["bias"],
        }
    }
    np.testing.assert_array_equal(folded.apply(weights, x), apply.apply(params, x))


def test_computes_in_the_dtype_of_the_input_with_float32_weights():
    layer = _layer(channels=6, kernel=3)
    x = _normal(0, 1, 4, 4, 4)
    params = layer.init(jax.random.key(0), x.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    low, high = layer.apply(params, x.astype(jnp.bfloat16)), layer.apply(params, x)
    assert low.dtype == jnp.bfloat16
    # 36 products, each rounded to 8 bits
    np.testing.assert_allclose(low.astype(jnp.float32), high, atol=0.05)


def test_fresh_weights_deviate_by_root_fan_in():
    params = jax.jit(_layer(channels=32, kernel=3).init)(jax.random.key(0), jnp.ones((1, 4, 4, 32)))
    np.testing.assert_allclose(np.std(params["conv"]["w"]) * (9 * 32) ** 0.5, 1.0, atol=0.03)


def test_axes():
    layer = _layer(channels=6, kernel=3)
    assert axes_of(
        layer.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 4, 4), jnp.float32)
    ) == {
        "conv/w": ("kernel", "kernel", "vision", "vision"),
        "conv/gain": ("vision",),
        "conv/bias": ("vision",),
    }
