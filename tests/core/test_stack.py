"""Scanned and unrolled layers are the same function, with the same remat."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core.params import param
from flamingo_jax.core.stack import Stack, with_loops

LAYERS, WIDTH = 3, 8


def block(x, inputs):
    w = param("w", (WIDTH, WIDTH), ("embed", "mlp"), hk.initializers.RandomNormal(0.3))
    return jnp.tanh(x @ w) + inputs, jnp.sum(x)


def compiled(loops, remat="none"):
    """Returns the compiled gradient of a stack, its text, and what it gives."""

    def apply(x, inputs):
        x, outputs = Stack(LAYERS, block, name="blocks", remat=remat)(x, inputs)
        return jnp.sum(jnp.sin(x)) + jnp.sum(outputs)

    model = hk.transform(apply)
    x, inputs = jnp.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH), jnp.arange(float(LAYERS))
    params = model.init(jax.random.key(0), x, inputs)

    def gradient(params, x, inputs):
        with with_loops(loops):
            return jax.value_and_grad(lambda p: model.apply(p, None, x, inputs))(params)

    program = jax.jit(gradient).lower(params, x, inputs).compile()
    return program.as_text(), program(params, x, inputs)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_unrolled_layers_are_the_same_function_without_a_loop(remat):
    (loop, expected), (text, got) = (compiled(loops, remat) for loops in ("scanned", "unrolled"))
    assert " while(" in loop and " while(" not in text
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_unrolled_layers_are_recomputed_too():
    """Without a loop around it, XLA would merge the recomputation with the forward pass."""
    tanh = {remat: compiled("unrolled", remat)[0].count(" tanh(") for remat in ("none", "full")}
    assert tanh["none"] == LAYERS
    assert tanh["full"] >= 2 * LAYERS - 1
