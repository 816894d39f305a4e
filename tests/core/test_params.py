"""core.params and core.stack: new weights are float32 with axes; stacks do not share names."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import axes, trees
from flamingo_jax.core.params import axes_of, param
from flamingo_jax.core.stack import (
    Layers,
    Stack,
    concatenate,
    grouped,
    is_unrolled,
    join_layers,
    layer_slice,
    scan,
    single,
    stacked,
    ungrouped,
    unrolled,
    unrolled_weights,
)

ONES = jnp.ones((2, 4))


class Layer(hk.Module):
    def __call__(self, x):
        return x @ param("w", (4, 4), ("embed", "mlp"), hk.initializers.RandomNormal()).astype(
            x.dtype
        )


class Model(hk.Module):
    """A stack inside of a stack, and another stack with the same inner names."""

    def __call__(self, x, remat="none"):
        def inner(x, _):
            return jnp.tanh(Layer(name="layer")(x)), None

        def outer(x, shift):
            x = Layer(name="layer")(x) + shift.astype(x.dtype)
            return Stack(2, inner, name="inner", remat=remat)(x)[0], shift * 2

        x, doubled = Stack(3, outer, name="outer", remat=remat)(x, jnp.arange(3.0))
        return Stack(3, inner, name="other", remat=remat)(x)[0], doubled


MODEL = hk.transform(lambda x, remat="none": Model(name="model")(x, remat))


def test_paths_shapes_and_axes_are_one_to_one_under_nested_stacks():
    params = MODEL.init(jax.random.key(0), ONES)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(params).items()}
    assert shapes == {
        "model/outer/layer/w": (3, 4, 4),
        "model/outer/inner/layer/w": (3, 2, 4, 4),
        "model/other/layer/w": (3, 4, 4),
    }
    assert axes_of(MODEL.init, jax.random.key(0), ONES) == {
        "model/outer/layer/w": ("layers", "embed", "mlp"),
        "model/outer/inner/layer/w": ("layers", "layers", "embed", "mlp"),
        "model/other/layer/w": ("layers", "embed", "mlp"),
    }


def test_a_stack_is_its_blocks_in_turn_and_each_has_its_own_weights():
    params = MODEL.init(jax.random.key(0), ONES)
    x, doubled = MODEL.apply(params, None, ONES)
    expected = np.ones((2, 4), np.float64)
    flat = trees.flatten(params)
    outer, inner, other = (
        np.asarray(flat[f"model/{name}/w"])
        for name in ("outer/layer", "outer/inner/layer", "other/layer")
    )
    for i in range(3):
        expected = expected @ outer[i] + i
        for j in range(2):
            expected = np.tanh(expected @ inner[i, j])
    for i in range(3):
        expected = np.tanh(expected @ other[i])
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)  # float32 against float64
    np.testing.assert_array_equal(doubled, [0.0, 2.0, 4.0])
    assert not np.allclose(outer[0], outer[1])


def test_remat_changes_nothing_but_memory():
    params = MODEL.init(jax.random.key(0), ONES)
    grad = lambda remat: jax.grad(lambda p: jnp.sum(MODEL.apply(p, None, ONES, remat)[0]))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), grad("none"), grad("full")
    )


def test_unrolled_layers_are_the_same_layers():
    """They give the outputs of the scan, up to 1e-6: float32, compiled differently."""
    params = MODEL.init(jax.random.key(0), ONES)
    apart = unrolled_weights(params, axes_of(MODEL.init, jax.random.key(0), ONES))
    assert (
        is_unrolled(apart)
        and not is_unrolled(params)
        and isinstance(apart["model/outer/layer"]["w"], Layers)
    )
    (expected, doubled), (got, also_doubled) = (MODEL.apply(w, None, ONES) for w in (params, apart))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(stacked(also_doubled), doubled)
    programs = [
        jax.jit(lambda w: MODEL.apply(w, None, ONES)).lower(w).as_text() for w in (params, apart)
    ]
    assert [text.count("stablehlo.while") for text in programs] == [
        3,
        3,
    ]  # separately: the inner stack in each of three layers
    assert "dynamic_slice" in programs[0]


def test_layers_are_sliced_and_joined():
    layers = unrolled({"w": jnp.arange(6).reshape(3, 2)})
    assert len(layers["w"]) == 3 and layer_slice(layers, 1)["w"].tolist() == [2, 3]
    assert stacked(layer_slice(layers, slice(1, None))["w"]).tolist() == [[2, 3], [4, 5]]
    joined = join_layers([layer_slice(layers, i) for i in range(3)])
    assert stacked(joined["w"]).tolist() == [[0, 1], [2, 3], [4, 5]]


def test_weights_are_float32_whatever_the_input():
    params = MODEL.init(jax.random.key(0), ONES.astype(jnp.bfloat16))
    assert {leaf.dtype for leaf in trees.flatten(params).values()} == {jnp.dtype("float32")}


def test_a_weight_without_an_axis_for_each_dimension_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 4\) but axes"):
        hk.transform(lambda: param("w", (4, 4), ("embed",), jnp.zeros)).init(jax.random.key(0))


def test_a_weight_that_was_not_made_by_param_is_an_error():
    init = hk.transform(lambda x: hk.Linear(3)(x)).init
    with pytest.raises(ValueError, match="core.params.param"):
        axes_of(init, jax.random.key(0), ONES)


def test_axes_become_partition_specs():
    assert axes.spec(("layers", "embed", "heads", "head_dim")) == jax.sharding.PartitionSpec(
        None, None, "model", None
    )
    assert axes.spec(("batch", "length")) == jax.sharding.PartitionSpec(("replica", "data"), None)
    with pytest.raises(ValueError, match="Unknown logical axes"):
        axes.spec(("colour",))
    with pytest.raises(ValueError, match="one mesh axis"):
        axes.spec(("heads", "mlp"))


@pytest.mark.parametrize("form", [lambda tree: tree, unrolled], ids=["stacked", "unrolled"])
def test_layers_in_groups_are_the_same_layers(form):
    """Groups, an incomplete group and a single layer give the outputs of a scan over all layers."""
    weights = form(jnp.arange(1.0, 6.0))

    def layer(x, w):
        return x * w, x + w

    def group(x, own):
        return scan(layer, x, own)

    expected, outputs = scan(layer, jnp.ones(()), weights)
    x, middle = scan(group, jnp.ones(()), grouped(layer_slice(weights, slice(0, 4)), 2))
    x, last = layer(x, layer_slice(weights, 4))
    found = concatenate([ungrouped(middle), single(last, weights)])
    assert is_unrolled(found) == is_unrolled(weights)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(stacked(found), stacked(outputs))
