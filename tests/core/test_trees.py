"""core.trees: tables match every weight once; merge undoes splits; hashes depend on every bit."""

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.precision import Policy

TREE = {
    "a/b": {"w": np.ones((2, 3), np.float32), "c": np.zeros((), np.float32)},
    "a": {"w": np.ones(4, np.float32)},
}


def test_flatten_and_back():
    flat = trees.flatten(TREE)
    assert list(flat) == ["a/w", "a/b/c", "a/b/w"] or list(flat) == sorted(flat)
    assert trees.flatten(trees.unflatten(flat)).keys() == flat.keys()
    assert trees.count(TREE) == 11


def test_match_once():
    table = ((r"a/w", "left"), (r"a/b/.*", "right"))
    assert trees.match_once(trees.flatten(TREE), table, what="test") == {
        "a/w": "left",
        "a/b/c": "right",
        "a/b/w": "right",
    }
    with pytest.raises(trees.TableError, match=r"weight 'a/w' by no row"):
        trees.match_once(trees.flatten(TREE), table[1:], what="test")
    with pytest.raises(trees.TableError, match=r"'a/w' by 2 rows"):
        trees.match_once(trees.flatten(TREE), (*table, (r".*a/w", "twice")), what="test")
    with pytest.raises(trees.TableError, match="match no weight"):
        trees.match_once(trees.flatten(TREE), (*table, (r"never", 0)), what="test")
    assert trees.match_once(
        trees.flatten(TREE), (*table, (r"never", 0)), what="test", allow_unused=True
    )


def test_partition_merge_and_subtree():
    chosen = {path: path == "a/b/w" for path in trees.flatten(TREE)}
    yes, no = trees.partition(TREE, chosen)
    assert set(trees.flatten(yes)) == {"a/b/w"}
    assert trees.flatten(trees.merge(yes, no)).keys() == trees.flatten(TREE).keys()
    with pytest.raises(ValueError, match="more than one"):
        trees.merge(yes, TREE)
    assert set(trees.subtree(TREE, "a/b")[""]) == {"w", "c"}
    assert set(trees.subtree(TREE, "a")) == {"", "b"}


def test_the_hash_sees_values_names_shapes_and_dtypes():
    changed = [
        {**TREE, "a": {"w": np.array([1, 1, 1, 1.0000001], np.float32)}},
        {**TREE, "a": {"v": TREE["a"]["w"]}},
        {**TREE, "a": {"w": TREE["a"]["w"].reshape(2, 2)}},
        {**TREE, "a": {"w": TREE["a"]["w"].astype(np.float16)}},
    ]
    hashes = {trees.content_hash(tree) for tree in (TREE, *changed)}
    assert len(hashes) == 5
    assert trees.content_hash(dict(reversed(TREE.items()))) == trees.content_hash(TREE)


def test_the_hash_is_that_of_exports_made_before():
    """The hash is from version 0.3.0. One weight is a scalar, like temperatures and gates."""
    tree = {"m": {"s": np.float32(0.5), "w": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    assert trees.content_hash(tree).startswith("22623318f705443a")


def test_the_policy_casts_floats_alone():
    cast = Policy("bfloat16").cast({"w": jnp.ones(2), "step": jnp.ones(2, jnp.int32)})
    assert cast["w"].dtype == jnp.bfloat16
    assert cast["step"].dtype == jnp.int32
