"""Fingerprints of weights: they differ after every change of a weight, and only then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.stack import unrolled_weights

WEIGHTS = {
    "a/linear": {
        "w": np.arange(24, dtype=np.float32).reshape(4, 6) / 7,
        "b": np.zeros(6, np.float32),
    },
    "a/scalar": {"gate": np.float32(0.5)},
}


def changed(module, name, change):
    return {**WEIGHTS, module: {**WEIGHTS[module], name: change(np.array(WEIGHTS[module][name]))}}


@pytest.mark.parametrize(
    "other",
    [
        # the last bit
        changed(
            "a/linear", "w", lambda w: np.where(w == w[2, 3], np.nextafter(w, np.float32(9)), w)
        ),
        changed("a/linear", "w", lambda w: w[::-1]),
        changed("a/linear", "w", lambda w: w[:, [1, 0, 2, 3, 4, 5]]),
        changed("a/linear", "w", lambda w: w.T),
        changed("a/linear", "w", lambda w: w.reshape(6, 4)),
        changed("a/linear", "b", lambda b: -b),  # minus zero
        changed("a/scalar", "gate", lambda gate: gate + np.float32(1e-6)),
        changed("a/linear", "w", lambda w: jnp.asarray(w, jnp.bfloat16)),
        {"a/linear": WEIGHTS["a/linear"]},
        {"b/linear": WEIGHTS["a/linear"], "a/scalar": WEIGHTS["a/scalar"]},
    ],
)
def test_every_change_shows(other):
    assert (
        fingerprint(other)
        != fingerprint(WEIGHTS)
        == fingerprint(jax.tree.map(jnp.asarray, WEIGHTS))
    )


def test_it_does_not_matter_where_weights_lie():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    spread = jax.tree.map(
        lambda w: jax.device_put(w, NamedSharding(mesh, PartitionSpec(*("x", "y")[: np.ndim(w)]))),
        WEIGHTS,
    )
    assert len(spread["a/linear"]["w"].sharding.device_set) == 4
    assert fingerprint(spread) == fingerprint(WEIGHTS)


def test_unrolled_weights_are_the_same_weights():
    axes = {"a/linear/w": ("layers", "embed"), "a/linear/b": ("embed",), "a/scalar/gate": ()}
    unrolled = unrolled_weights(WEIGHTS, axes)
    assert len(jax.tree.leaves(unrolled)) == 6
    assert fingerprint(unrolled) == fingerprint(WEIGHTS)
