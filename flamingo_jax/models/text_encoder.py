"""BERT, the text encoder of the contrastive stage (paper, B.1.3; Devlin et al. 2019).

Flamingo itself does not contain it.

    BERT (norm="after")                         CLIP (norm="before")
    x = LN(embed(tokens) + positions)           x = embed(tokens) + positions       tokens [B L]
    num_layers x:                               num_layers x:
        x = LN(x + attention(x))                    x = x + attention(LN(x))        x [B L W]
        x = LN(x + ffw(x))                          x = x + ffw(LN(x))
                                                x = LN(x)

In BERT a token attends all tokens that are not padding, on both sides. The GELU is the exact one,
and all linear maps have biases. CLIP's text transformer (Radford et al. 2021) is the same with
other options: a token attends the tokens before it only, and norms come before the layers.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import haiku as hk
import jax.numpy as jnp

from flamingo_jax.core import ranges
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.params import param
from flamingo_jax.core.stack import Remat, Stack
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.feedforward import feed_forward
from flamingo_jax.nn.linear import linear
from flamingo_jax.nn.norm import EPSILON, LayerNorm


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Shape of a BERT (models/sizes.py).

    Attributes:
        vocab_size: ids that the tokenizer knows; the table has the next multiple of
            `vocab_multiple` rows.
        num_layers: transformer blocks.
        width: W.
        num_heads: H; divides the width.
        max_length: longest text, in tokens.
        mlp_ratio: hidden width of the feed-forward layer, in widths.
        norm: whether a LayerNorm comes "after" each residual sum (BERT), or "before" each layer
            (CLIP).
        causal: whether a token attends only itself and the tokens before it.
        activation: of the feed-forward layers; "quick_gelu" in OpenAI's CLIP.
        epsilon: of the LayerNorms.
        token_types: rows of BERT's table of sentence types, of which a caption has the first; 0 =
            no such table.
        vocab_multiple: the table is padded to a multiple of this, so that a mesh divides its rows.
        remat: "full" recomputes each block in the backward pass.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    max_length: int
    mlp_ratio: int = 4
    norm: Literal["after", "before"] = "after"
    causal: bool = False
    activation: Literal["gelu_exact", "quick_gelu"] = "gelu_exact"
    epsilon: float = EPSILON
    token_types: int = 0
    vocab_multiple: int = 128
    remat: Remat = "none"

    def __post_init__(self) -> None:
        sizes = ("num_layers", "width", "num_heads", "max_length", "mlp_ratio", "vocab_multiple")
        ranges.check(self, ranges.whole(1), *sizes)
        ranges.check(self, ranges.whole(0), "vocab_size", "token_types")
        ranges.check(self, ranges.EPSILON, "epsilon")
        if self.width % self.num_heads:
            raise ValueError(
                f"Text encoder: {self.num_heads} heads do not divide width {self.width}."
            )


class TextEncoder(hk.Module):
    """Tokens to one vector for each."""

    def __init__(self, config: TextEncoderConfig, name: str = "text"):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self, tokens: Int[Array, "B L"], segment: Int[Array, "B L"]
    ) -> Float[Array, "B L W"]:
        """Returns the last layer, in the dtype of the weights; padding has meaningless vectors.

        Args:
            tokens: ids.
            segment: 0 where a token is padding.

        Raises:
            ValueError: the text is longer than config.max_length.
        """
        config, length = self.config, tokens.shape[1]
        if length > config.max_length:
            raise ConfigError(
                f"Text encoder {self.name!r} got {length} tokens, expected at most "
                f"max_length={config.max_length}: shorten or raise it."
            )
        init = hk.initializers.TruncatedNormal(0.02)
        rows = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        x = param("embedding", (rows, config.width), ("vocab", "embed"), init)[tokens]
        shape = (config.max_length, config.width)
        x = x + param("positions", shape, ("length", "embed"), init)[None, :length]
        if config.token_types:
            shape = (config.token_types, config.width)
            x = x + param("types", shape, (None, "embed"), init)[None, :1]
        after = config.norm == "after"
        if after:
            x = _norm(x, config, "embedding_norm")
        mask = jnp.broadcast_to((segment > 0)[:, None, :], (*tokens.shape, length))
        if config.causal:
            mask = mask & jnp.tri(length, dtype=bool)[None]

        def block(x: Array, _: None) -> tuple[Array, None]:
            x = constrain(x, "batch", "length", "embed")
            y = x if after else _norm(x, config, "attention_norm")
            heads = (config.num_heads, config.width // config.num_heads)
            into, back = ("embed", "heads", "head_dim"), ("heads", "head_dim", "embed")
            q, k, v = (
                linear(y, heads, axes=into, bias=True, name=name)
                for name in ("query", "key", "value")
            )
            out = attend(q, k, v, mask)
            out = linear(out, x.shape[-1:], num_in=2, axes=back, bias=True, name="output")
            x = _norm(x + out, config, "attention_norm") if after else x + out
            y = x if after else _norm(x, config, "ffw_norm")
            out = feed_forward(
                y, config.mlp_ratio * config.width, activation=config.activation, name="ffw"
            )
            return _norm(x + out, config, "ffw_norm") if after else x + out, None

        x, _ = Stack(config.num_layers, block, name="layers", remat=config.remat)(x)
        return x if after else _norm(x, config, "final_norm")


def _norm(x: Float[Array, "B L W"], config: TextEncoderConfig, name: str) -> Float[Array, "B L W"]:
    return LayerNorm(epsilon=config.epsilon, name=name)(x)
