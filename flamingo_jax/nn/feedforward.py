"""The feed-forward layer of a transformer, and its activations.

    x [B L D] --up--> [B L M] --activation--> [B L M] --down--> [B L D]

With a gated activation, such as "swiglu": silu(gate(x)) * up(x) instead of activation(up(x)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.nn.linear import linear
from flamingo_jax.nn.lora import LoRAConfig, adapted

Activation = Literal["gelu", "gelu_exact", "quick_gelu", "relu", "squared_relu", "swiglu", "geglu"]


def squared_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns max(x, 0)^2 (So et al. 2021), as in the trained layers (paper, Table 4)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "squared_relu": squared_relu,
}
GATED: Mapping[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": ACTIVATIONS["gelu"],
}
"""Activations of a gate, whose value multiplies up(x) (Shazeer 2020)."""


class FeedForward(hk.Module):
    """down(activation(up(x))); with one of `GATED`, down(activation(gate(x)) * up(x))."""

    def __init__(
        self,
        width: int,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
        batch: str = "batch",
        axis: str = "mlp",
        lora: LoRAConfig | None = None,
        name: str,
    ):
        """Describes the layer.

        Args:
            width: M, the hidden width.
            activation: the non-linearity.
            bias: whether all linear maps have biases.
            batch: logical axis of the rows.
            axis: logical axis of M.
            lora: adapters of the linear maps.
            name: module name.
        """
        super().__init__(name=name)
        self.width, self.activation, self.bias = width, activation, bias
        self.batch, self.axis, self.lora = batch, axis, lora

    def __call__(self, x: Float[Array, "*n B L D"]) -> Float[Array, "*n B L D"]:
        """Applies the layer, without a norm and without the residual sum.

        Of copies of x [n, B, L, D], the result is in summands (`models.halves`).
        """
        up = self._widen(x, "up")
        if self.activation in GATED:
            gate = self._widen(x, "gate")
            hidden = GATED[self.activation](gate) * up
        else:
            hidden = ACTIVATIONS[self.activation](up)
        hidden = jax.lax.optimization_barrier(hidden)
        axes = (self.axis, "embed")
        y = linear(hidden, x.shape[-1:], axes=axes, bias=self.bias, name="down")
        return adapted(y, hidden, self.lora, axes=axes, name="down")

    @hk.name_like("__call__")
    def _widen(self, x: Array, name: str) -> Array:
        axes = ("embed", self.axis)
        hidden = linear(x, (self.width,), axes=axes, bias=self.bias, name=name)
        hidden = adapted(hidden, x, self.lora, axes=axes, name=name)
        hidden = checkpoint_name(constrain(hidden, self.batch, "length", self.axis), "mlp_hidden")
        # Forward and backward: an activation or its derivative that is fused into a product would
        # be computed again for each tile.
        return jax.lax.optimization_barrier(hidden)


def feed_forward(
    x: Float[Array, "*n B L D"],
    width: int,
    *,
    activation: Activation = "gelu",
    bias: bool = True,
    batch: str = "batch",
    axis: str = "mlp",
    lora: LoRAConfig | None = None,
    name: str,
) -> Float[Array, "*n B L D"]:
    """Makes and applies one `FeedForward`."""
    layer = FeedForward(
        width, activation=activation, bias=bias, batch=batch, axis=axis, lora=lora, name=name
    )
    return layer(x)
