"""The feed-forward layer of a transformer, and the activations that the models name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core.notation import Array, Float
from flamingo_jax.nn.linear import linear

Activation = Literal["gelu", "gelu_exact", "quick_gelu", "relu", "squared_relu", "swiglu"]


def squared_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0)^2 (So et al. 2021), the activation of the trainable layers (paper, Table 4)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "squared_relu": squared_relu,
}


class FeedForward(hk.Module):
    """down(activation(up(x))); with "swiglu", down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, *, activation: Activation = "gelu", bias: bool = True, name: str):
        """`width`: M, the hidden width; `bias`: on all of its linear maps."""
        super().__init__(name=name)
        self.width, self.activation, self.bias = width, activation, bias

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Applies the layer, without norm or residual."""
        up = linear(x, (self.width,), axes=("embed", "mlp"), bias=self.bias, name="up")
        if self.activation == "swiglu":
            gate = linear(x, (self.width,), axes=("embed", "mlp"), bias=self.bias, name="gate")
            hidden = jax.nn.silu(gate) * up
        else:
            hidden = ACTIVATIONS[self.activation](up)
        return linear(hidden, x.shape[-1:], axes=("mlp", "embed"), bias=self.bias, name="down")


def feed_forward(
    x: Float[Array, "B L D"], width: int, *, activation: Activation = "gelu", bias: bool = True, name: str
) -> Float[Array, "B L D"]:
    """Makes and applies one `FeedForward`."""
    return FeedForward(width, activation=activation, bias=bias, name=name)(x)
