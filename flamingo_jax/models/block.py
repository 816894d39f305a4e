"""One layer of the language model: self-attention and feed-forward.

x = x + attention(norm(x))
x = x + feed_forward(norm(x))
"""

from __future__ import annotations

from typing import Any

import haiku as hk
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.models.self_attention import Context, SelfAttention, normalised
from flamingo_jax.nn.feedforward import feed_forward


class Block(hk.Module):
    """One layer, with its two parts in sequence or (GPT-NeoX) in parallel."""

    def __init__(self, config: LMConfig, *, name: str = "block"):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "B T D"],
        context: Context,
        cache: Any = None,
        is_global: Bool[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns (x, new rows for this layer's cache; None if there is no cache)."""
        config = self.config
        x = residual(x)
        attended, rows = self.attention(self.before(x, "attention"), context, cache, is_global)
        attended = self._after(attended, "attention")
        if not config.parallel_residual:
            x = checkpoint_name(residual(x + attended), "attended")
        hidden = self._after(self.feed_forward(self.before(x, "mlp")), "mlp")
        return residual(x + attended + hidden if config.parallel_residual else x + hidden), rows

    @hk.name_like("__call__")
    def before(self, x: Float[Array, "B T D"], part: str) -> Float[Array, "B T D"]:
        """Returns the input of "attention" or "mlp": x, with the norm before it if there is one."""
        if self.config.norm_place == "after":
            return x
        return normalised(self.config, x, name=f"{part}_norm")

    @hk.name_like("__call__")
    def attention(
        self,
        x: Float[Array, "*n B T D"],
        context: Context,
        cache: Any = None,
        is_global: Bool[Array, ""] | None = None,
    ) -> tuple[Float[Array, "*n B T D"], Any]:
        """Returns `SelfAttention` of x; of copies, its summands (`models.halves`)."""
        return SelfAttention(self.config, context, is_global, name="attention")(x, cache)

    @hk.name_like("__call__")
    def feed_forward(self, x: Float[Array, "*n B T D"]) -> Float[Array, "*n B T D"]:
        """Returns `FeedForward` of x; of copies, its summands (`models.halves`)."""
        config = self.config
        return feed_forward(
            x,
            config.mlp_width or 4 * config.width,
            activation=config.activation,
            bias=config.mlp_bias,
            lora=config.lora,
            name="mlp",
        )

    @hk.name_like("__call__")
    def _after(self, x: Float[Array, "B T D"], part: str) -> Float[Array, "B T D"]:
        if self.config.norm_place == "before":
            return x
        return normalised(self.config, x, name=f"{part}_out_norm")


def residual(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Returns the residual stream x, with its tokens split over all chips if the layout says so."""
    return constrain(x, "rows", "sequence", "embed")
