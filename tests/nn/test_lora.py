"""The update of a product by its adapter, and the product with the update merged into it."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.nn import lora
from flamingo_jax.nn.linear import linear

RNG = np.random.default_rng(0)
CONFIG = lora.LoRAConfig(rank=3, alpha=6.0, targets=("out",))


def forward(x, config):
    axes = ("heads", "head_dim", "embed")
    y = linear(x, (7,), axes=axes, num_in=2, name="out")
    return lora.adapted(y, x, config, axes=axes, num_in=2, name="out")


MODEL = hk.without_apply_rng(hk.transform(forward))


@pytest.fixture
def x():
    return jnp.asarray(RNG.normal(size=(2, 3, 4, 5)), jnp.float32)


def test_the_update_is_zero_at_the_start_and_alpha_by_rank_times_the_product_then(x):
    params = MODEL.init(jax.random.key(0), x, CONFIG)
    assert {path: leaf.shape for path, leaf in params["out_lora"].items()} == {
        "a": (4, 5, 3),
        "b": (3, 7),
    }
    plain = {"out": params["out"]}
    np.testing.assert_array_equal(MODEL.apply(params, x, CONFIG), MODEL.apply(plain, x, None))
    params["out_lora"]["b"] = jnp.asarray(RNG.normal(size=(3, 7)), jnp.float32)
    w, adapter = params["out"]["w"], params["out_lora"]
    whole = w + 2.0 * jnp.einsum("hkr,rd->hkd", adapter["a"], adapter["b"])
    np.testing.assert_allclose(
        MODEL.apply(params, x, CONFIG), jnp.einsum("blhk,hkd->bld", x, whole), rtol=1e-5, atol=1e-5
    )
    rounded = {**params, "out": {"w": Int8Weight.of(w, (0, 1))}}
    np.testing.assert_allclose(
        MODEL.apply(rounded, x, CONFIG) - MODEL.apply({"out": rounded["out"]}, x, None),
        2.0 * jnp.einsum("blhk,hkr,rd->bld", x, adapter["a"], adapter["b"]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_merged_weights_have_the_update_of_each_layer_and_no_adapter():
    normal = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    adapter = {"a": normal(2, 4, 5, 3), "b": normal(2, 3, 7)}
    params = {"lm/out": {"w": normal(2, 4, 5, 7).astype(jnp.bfloat16)}, "lm/out_lora": adapter}
    merged = lora.merged(params, CONFIG)
    assert merged.keys() == {"lm/out"} and merged["lm/out"]["w"].dtype == jnp.float32
    for layer in range(2):
        update = jnp.einsum("hkr,rd->hkd", adapter["a"][layer], adapter["b"][layer])
        expected = params["lm/out"]["w"][layer].astype(jnp.float32) + 2.0 * update
        np.testing.assert_allclose(merged["lm/out"]["w"][layer], expected, rtol=1e-5, atol=1e-5)
    shapes = jax.eval_shape(lambda: {"lm/out": params["lm/out"], "lm/up": params["lm/out"]})
    read = lora.float32_where_adapted(shapes, {"lm/out_lora": adapter})
    assert (read["lm/out"]["w"].dtype, read["lm/up"]["w"].dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("block/attention/query_lora/a", True),
        ("flamingo/lm/blocks/block/mlp/up_lora/b", True),
        ("block/attention/query/w", False),
        ("block/query_lora/w", False),
    ],
)
def test_paths_of_adapters(path, is_one):
    assert lora.is_adapter(path) == is_one
