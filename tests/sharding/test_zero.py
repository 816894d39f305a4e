"""ZeRO-1: the part of a weight that each chip keeps."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from flamingo_jax.sharding import zero
from tests.sharding import chips

POD = (3, 32, 16)


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("embed", "heads", "head_dim"), (8192, 64, 128), P("data", "model", None)),
        (("heads", "head_dim", "embed"), (64, 128, 8192), P("model", None, "data")),
        # Never layers, although 32 divides them.
        (("layers", "mlp", "embed"), (32, 32768, 8192), P(None, "model", "data")),
        (("embed",), (8192,), P("data")),
        # Not split over model in the layout: split over both.
        (("vision", "embed"), (1536, 8192), P("model", "data")),
        (("latent_heads", "head_dim", "embed"), (16, 128, 1536), P(None, "model", "data")),
        (("frames", "embed"), (8, 1536), P(None, "data")),  # 16 does not divide 8
        (("embed",), (40,), P(None)),  # neither 32 nor 16 divides 40
        ((), (), P()),  # a gate
        (("layers",), (32,), P(None)),  # the gates of all layers
    ],
)
def test_the_largest_free_dimension_is_split_over_data(axes, shape, expected):
    assert zero.spec(axes, shape, chips.mesh(*POD)) == expected


def test_a_layer_is_split_as_the_stack_of_layers():
    """So its gradient can be split inside the scan."""
    mesh = chips.mesh(*POD)
    one = zero.spec(("embed", "heads", "head_dim"), (8192, 64, 128), mesh)
    assert zero.spec(("layers", "embed", "heads", "head_dim"), (12, 8192, 64, 128), mesh) == P(
        None, *one
    )


def test_a_mesh_without_data_or_model_splits_nothing_over_them():
    axes, shape = ("vision", "embed"), (1536, 8192)
    assert zero.spec(axes, shape, chips.mesh(2, 1, 1)) == P(None, None)
    assert zero.spec(axes, shape, chips.mesh(1, 8, 1)) == P(None, "data")
    assert zero.spec(axes, shape, chips.mesh(1, 1, 8)) == P(None, "model")


def test_trees_keep_their_form():
    tree = {
        "block": {
            "w": jax.ShapeDtypeStruct((64, 32), jnp.float32),
            "b": jax.ShapeDtypeStruct((32,), jnp.float32),
        }
    }
    found = zero.shardings_of(
        tree, {"block/w": ("mlp", "embed"), "block/b": ("embed",)}, chips.mesh(1, 8, 4)
    )
    assert {name: sharding.spec for name, sharding in found["block"].items()} == {
        "w": P("model", "data"),
        "b": P("data"),
    }
