"""Shardings of weights on the mesh, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flamingo_jax.sharding import compile as compile_lib
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.sharding import chips


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "heads", "head_dim"), (64, 16, 4), P(None, "model", None)),
        (("embed", "mlp"), (64, 256), P(None, "model")),
        (("mlp", "embed"), (256, 64), P("model", None)),
        (("vocab", "embed"), (128, 64), P("model", None)),
        (("embed", "kv_heads", "head_dim"), (64, 32, 4), P(None, "model", None)),
        # Fewer heads than chips: each chip has all of them.
        (("embed", "kv_heads", "head_dim"), (64, 4, 4), P(None, None, None)),
        (("embed", "kv_heads", "head_dim"), (64, 1, 4), P(None, None, None)),
        (("embed", "latent_heads", "head_dim"), (64, 3, 4), P(None, None, None)),
        (("kernel", "kernel", "vision", "vision"), (3, 3, 5, 7), P(None, None, None, None)),
    ],
)
def test_weights_follow_their_axes(axes, shape, expected):
    assert compile_lib.weight_spec("w", shape, axes, chips.mesh(3, 32, 16)) == expected


@pytest.mark.parametrize(
    ("axes", "shape", "size", "word"),
    [
        (("embed", "heads", "head_dim"), (64, 40, 4), 40, "heads"),
        (
            ("embed", "heads", "head_dim"),
            (64, 8, 4),
            8,
            "heads",
        ),  # too few query heads are an error
        (("embed", "kv_heads", "head_dim"), (64, 24, 4), 24, "kv_heads"),
        (("mlp", "embed"), (200, 64), 200, "mlp"),
        (("vocab", "embed"), (100, 64), 100, "vocab"),
    ],
)
def test_a_dimension_that_the_model_axis_does_not_divide_is_one_clear_error(
    axes, shape, size, word
):
    with pytest.raises(ValueError) as caught:
        compile_lib.weight_spec("lm/block/w", shape, axes, chips.mesh(3, 32, 16))
    said = str(caught.value)
    assert f"Weight lm/block/w has {size} of {word!r} in shape {shape}" in said
    assert "model = 16" in said and "config.mesh.model" in said
    assert "\n" not in said


def test_abstract_arrays_know_their_sharding():
    mesh = make_mesh(MeshConfig(data=2, model=4))
    tree = {"block": {"w": jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)}}
    shardings = compile_lib.shardings_of(
        tree, {"block/w": ("layers", "mlp", "embed"), "other": ()}, mesh
    )
    assert shardings["block"]["w"].spec == P(None, "model", None)
    abstract = compile_lib.with_shardings(tree, shardings)
    assert abstract["block"]["w"].sharding == shardings["block"]["w"]
    assert (abstract["block"]["w"].shape, abstract["block"]["w"].dtype) == ((3, 8, 4), jnp.float32)


def test_an_init_makes_its_parts_on_their_devices():
    mesh = make_mesh(MeshConfig(data=2, model=4))
    sharding = jax.sharding.NamedSharding(mesh, P("model", "data"))
    made = compile_lib.jit_once(lambda x: x + 1, sharding, mesh)(jnp.zeros((8, 4)))
    assert made.sharding == sharding
    np.testing.assert_array_equal(made, np.ones((8, 4)))


def test_compiler_options_depend_on_the_platform():
    assert compile_lib.compiler_options(make_mesh(MeshConfig(data=8))) is None
    options = compile_lib.compiler_options(chips.mesh(1, 2, 4))
    overlap = compile_lib.compiler_options(chips.mesh(1, 2, 4), overlap=True)
    assert options is not None and overlap is not None
    assert "true" not in options.values() and options.items() < overlap.items()
