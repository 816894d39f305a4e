"""NFNet against an independent numpy network; initial identity, folding, stochastic depth."""

import dataclasses
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.precision import Policy
from flamingo_jax.models import frozen, nfnet
from flamingo_jax.models.nfnet import NFNet, NFNetConfig
from flamingo_jax.models.sizes import NFNETS

# Every feature of the big ones, small: groups, two strides, squeeze-and-excite, a repeated block, a
# final convolution.
SMALL = NFNetConfig(
    widths=(8, 16),
    depths=(2, 3),
    strides=(1, 2),
    stem_channels=(4, 6),
    stem_strides=(2, 1),
    group_width=4,
)


def _network(config):
    return hk.without_apply_rng(
        hk.transform(
            lambda x, training=False, rng=None: NFNet(config)(x, is_training=training, rng=rng)
        )
    )


def _weights(config, images):
    shapes = jax.eval_shape(_network(config).init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.3, 0.5, size=leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(8, 12, 12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params(images):
    """Weights of SMALL with nothing at its initial value.

    Gains of 0 would hide the residual branches.
    """
    return _weights(SMALL, images)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(_network(SMALL).apply)


@pytest.fixture(scope="module")
def grid(images, params, apply):
    return apply(params, images)


def _reference(weights, x, config):
    """The same network in numpy float64, block by block, from the published description alone."""
    layer = {}

    def act(x):
        return (
            1.7015043497085571
            * 0.5
            * x
            * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        )

    def conv(x, name, stride=1, groups=1):
        w, gain, bias = (layer[f"{name}/{key}"] for key in ("w", "gain", "bias"))
        w = (
            (w - w.mean((0, 1, 2)))
            / np.sqrt(np.maximum(w.var((0, 1, 2)) * w[..., 0].size, 1e-4))
            * gain
        )
        kernel, size = len(w), x.shape[1]
        out = -(-size // stride)
        total = max((out - 1) * stride + kernel - size, 0)
        x = np.pad(x, ((0, 0), (total // 2, kernel), (total // 2, kernel), (0, 0)))
        result = np.zeros((len(x), out, out, w.shape[-1]))
        for group in range(groups):
            inputs = slice(group * w.shape[2], (group + 1) * w.shape[2])
            outputs = slice(group * w.shape[3] // groups, (group + 1) * w.shape[3] // groups)
            for i in range(kernel):
                for j in range(kernel):
                    window = x[
                        :, i : i + stride * out : stride, j : j + stride * out : stride, inputs
                    ]
                    result[..., outputs] += window @ w[i, j, :, outputs]
        return result + bias

    layer = {path.removeprefix("vision/"): leaf for path, leaf in weights.items()}
    for i, stride in enumerate(config.stem_strides):
        x = conv(act(x) if i else x, f"stem_conv{i}", stride)
    every, variance = layer, 1.0
    for i, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for j in range(depth):
            prefix = f"stage{i}/{'rest' if j else 'first'}/"
            block = {
                path.removeprefix(prefix): leaf
                for path, leaf in every.items()
                if path.startswith(prefix)
            }
            layer = {path: leaf[j - 1] for path, leaf in block.items()} if j else block
            stride, groups = 1 if j else config.strides[i], width // 2 // config.group_width
            out = act(x) / math.sqrt(variance)
            if j == 0:
                pooled = out.reshape(
                    len(out), out.shape[1] // stride, stride, -1, stride, out.shape[3]
                ).mean((2, 4))
                x = conv(pooled, "shortcut")
            out = conv(out, "conv0")
            out = conv(act(out), "conv1", stride, groups)
            out = conv(act(out), "conv1b", 1, groups)
            out = conv(act(out), "conv2")
            hidden = np.maximum(out.mean((1, 2)) @ layer["squeeze/w"] + layer["squeeze/b"], 0)
            factor = 2 / (1 + np.exp(-(hidden @ layer["excite/w"] + layer["excite/b"])))
            x = x + config.alpha * layer["skip/gain"] * factor[:, None, None] * out
            variance = (variance if j else 1.0) + config.alpha**2
    layer = every
    return act(conv(x, "final_conv"))


def test_parity_with_numpy(images, params, grid):
    """Tolerance 1e-4 of the largest value: float32 through 24 convolutions against float64."""
    weights = {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten(params).items()}
    expected = _reference(weights, np.asarray(images, np.float64), SMALL)
    assert grid.shape == expected.shape == (8, 3, 3, 32)
    np.testing.assert_allclose(grid, expected, atol=1e-4 * np.abs(expected).max())


def test_betas_restart_at_each_stage():
    one, two = 1.04**-0.5, 1.08**-0.5
    flat = [value for stage in nfnet.betas(SMALL) for value in stage]
    np.testing.assert_allclose(flat, [1, one, two, one, two], rtol=1e-12)


def test_folding_changes_the_weights_and_not_the_function(images, params, grid):
    """Tolerance 1e-6 of the largest value.

    The standardised weights are equal, only fused differently.
    """
    config = dataclasses.replace(SMALL, weight_standardisation="folded")
    folded = frozen.compute_form_of_nfnet(params)
    expected = jax.eval_shape(_network(config).init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, expected)
    assert not any(path.endswith("conv1/gain") for path in trees.flatten(folded))
    out = jax.jit(_network(config).apply)(folded, images)
    np.testing.assert_allclose(out, grid, atol=1e-6 * np.abs(grid).max())


def test_scanned_and_unrolled_blocks_are_the_same_function(images):
    """Tolerance 1e-5 of the largest value: the compiler orders the sums otherwise."""
    config = dataclasses.replace(
        SMALL,
        widths=(4,),
        depths=(3,),
        strides=(2,),
        stem_channels=(4,),
        stem_strides=(2,),
        se_ratio=None,
    )
    params = _weights(config, images[:2])

    def gradient(**change):
        network = _network(dataclasses.replace(config, **change))
        value = jax.jit(
            jax.value_and_grad(lambda p: jnp.mean(jnp.square(network.apply(p, images[:2]))))
        )(params)
        return trees.flatten({"value": {"": value[0]}, **value[1]})

    expected = gradient()
    for change in ({"loop": "unrolled", "remat": "full"}, {"remat": "projections"}):
        got = gradient(**change)
        assert got.keys() == expected.keys()
        for path in got:
            np.testing.assert_allclose(
                got[path], expected[path], atol=1e-5 * max(np.abs(expected[path]).max(), 1)
            )


def test_remat_recomputes_convolutions_or_all_but_them(images):
    """The gradient's program: convolutions (those of 1x1 are products), and activations."""

    def program(remat):
        network = _network(dataclasses.replace(SMALL, remat=remat, se_ratio=None))
        params = jax.eval_shape(network.init, jax.random.key(0), images[:2])
        loss = lambda p: jnp.sum(network.apply(p, images[:2]))
        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        products = text.count("conv_general_dilated[") + text.count("dot_general[")
        return products, text.count(" tanh ")

    none, some, full = (program(remat) for remat in ("none", "projections", "full"))
    assert none[0] == some[0] < full[0]
    assert none[1] < some[1] == full[1]


def test_a_fresh_block_is_the_identity(images, params, apply):
    """SkipInit: a new residual branch has gain 0, so that its other weights do not matter."""
    zero = {
        path: jnp.zeros_like(w) if path.endswith("skip/gain") else w
        for path, w in trees.flatten(params).items()
    }
    branch = ("/conv0/w", "/conv1/w", "/conv1b/w", "/conv2/w")
    changed = {path: w[..., ::-1] if path.endswith(branch) else w for path, w in zero.items()}
    assert sum(changed[path] is not zero[path] for path in zero) == 16
    np.testing.assert_array_equal(
        apply(trees.unflatten(changed), images), apply(trees.unflatten(zero), images)
    )


def test_gains_start_at_skip_init(images):
    init = _network(dataclasses.replace(SMALL, skip_init=0.5)).init
    gain = jax.jit(lambda key: init(key, images)["vision/stage1/rest/skip"]["gain"])(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(gain, [0.5, 0.5])


def test_stochastic_depth_drops_whole_branches_per_image(images):
    """Of two blocks with rate 1 the second is dropped with probability 1/2.

    Each image is one of the two outcomes.
    """
    config = dataclasses.replace(
        SMALL, widths=(4,), depths=(2,), strides=(1,), se_ratio=None, stochastic_depth=1.0
    )
    network, params = _network(config), _weights(config, images)
    run = jax.jit(network.apply)
    train = jax.jit(lambda params, key: network.apply(params, images, True, key))  # noqa: FBT003
    kept = run(params, images)
    dropped = run({**params, "vision/stage0/rest/skip": {"gain": jnp.zeros(1)}}, images)
    out = train(params, jax.random.key(0))
    is_kept = [np.allclose(out[i], kept[i], atol=1e-5) for i in range(8)]
    is_dropped = [np.allclose(out[i], dropped[i], atol=1e-5) for i in range(8)]
    assert [not kept for kept in is_kept] == is_dropped
    assert 0 < sum(is_kept) < 8
    np.testing.assert_array_equal(train(params, jax.random.key(0)), out)
    with pytest.raises(ValueError, match="'vision' has stochastic_depth=1.0: pass rng="):
        jax.eval_shape(lambda params: network.apply(params, images, training=True), params)


def test_bfloat16_is_close_to_float32(images, params, grid):
    """Tolerance 5 % of the largest value.

    24 convolutions with 8 bits of mantissa (2^-8 = 0.4 % each).
    """
    low = jax.jit(_network(SMALL).apply)(
        Policy("bfloat16").cast(params), images.astype(jnp.bfloat16)
    )
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), grid, atol=0.05 * np.abs(grid).max())


@pytest.mark.parametrize(("size", "side"), [(288, 9), (320, 10), (480, 15)])
def test_grid_of_the_papers_resolutions(size, side):
    network = _network(NFNETS["F6"])
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    assert jax.eval_shape(network.apply, params, images).shape == (2, side, side, 3072)
    assert (NFNETS["F6"].width, NFNETS["F6"].reduction) == (3072, 32)


def test_normalise_gives_mean_0_and_deviation_1_to_imagenets_pixels():
    pixels = jnp.array([[0, 0, 0], [124, 116, 104], [255, 255, 255]], jnp.uint8)
    expected = (np.asarray(pixels) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(nfnet.normalise(pixels), expected, atol=1e-5)
    assert nfnet.normalise(pixels, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1, 2, 3)}, "a width, depth and stride for each stage"),
        ({"stem_strides": (2,)}, "stem has"),
        ({"group_width": 100}, "group_width 100 does not divide the 128 channels"),
    ],
)
def test_impossible_shapes_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        NFNetConfig(**change)
