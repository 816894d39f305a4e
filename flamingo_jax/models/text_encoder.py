"""BERT, the text side of the contrastive stage (paper, B.1.3; Devlin et al. 2019).

Flamingo itself does not contain it.

    tokens [B L] --embed + positions--LayerNorm--> num_layers x { x = LN(x + attention(x)) ; x = LN(x + ffw(x)) } --> [B L W]

Attention looks both ways, at all tokens that are not padding. The norm comes after the residual,
the GELU is the exact one, all linear maps have biases. CLIP's text transformer (Radford et al.
2021) is the same with other options: it looks back only, and each norm comes before its layer, with
one more at the end.

    tokens [B L] --embed + positions--> num_layers x { x += attention(LN x) ; x += ffw(LN x) } --LayerNorm--> [B L W]
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import haiku as hk
import jax.numpy as jnp

from flamingo_jax.core.axes import constrain
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
        causal: whether a token sees only those before it.
        activation: of the feed-forward layers; "quick_gelu" in OpenAI's CLIP.
        epsilon: of the LayerNorms.
        token_types: rows of BERT's table of sentence types, of which a caption has the first; 0
            leaves it out.
        vocab_multiple: what the table's rows are padded to, so that a mesh divides them.
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
        if self.width % self.num_heads:
            raise ValueError(
                f"Text encoder: {self.num_heads} heads do not divide width {self.width}."
            )


class TextEncoder(hk.Module):
    """Tokens to one vector each."""

    def __init__(self, config: TextEncoderConfig, name: str = "text"):
        super().__init__(name=name)
        self.config = config

    def __call__(
        self, tokens: Int[Array, "B L"], segment: Int[Array, "B L"]
    ) -> Float[Array, "B L W"]:
        """Returns the last layer, in the dtype of the weights.

        What stands at padding is not meant to be used.

        Args:
            tokens: Int[B, L] ids.
            segment: Int[B, L] 0 where a token is padding.

        Raises:
            ValueError: if the text is longer than config.max_length.
        """
        config, length = self.config, tokens.shape[1]
        if length > config.max_length:
            raise ValueError(
                f"Text encoder {self.name!r} got {length} tokens, expected at most "
                f"max_length={config.max_length}: shorten or raise it."
            )
        init = hk.initializers.TruncatedNormal(0.02)
        rows = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        x = param("embedding", (rows, config.width), ("vocab", "embed"), init)[tokens]
        x = (
            x
            + param("positions", (config.max_length, config.width), ("length", "embed"), init)[
                None, :length
            ]
        )
        if config.token_types:
            x = (
                x
                + param("types", (config.token_types, config.width), (None, "embed"), init)[
                    None, :1
                ]
            )
        after = config.norm == "after"
        if after:
            x = _norm(x, config, "embedding_norm")
        mask = jnp.broadcast_to((segment > 0)[:, None, :], (*tokens.shape, length))
        if config.causal:
            mask = mask & jnp.tri(length, dtype=bool)[None]

        def block(x: Array, _: None) -> tuple[Array, None]:
            x = constrain(x, "batch", "length", "embed")
            y = x if after else _norm(x, config, "attention_norm")
            heads, axes = (
                (config.num_heads, config.width // config.num_heads),
                ("embed", "heads", "head_dim"),
            )
            q, k, v = (
                linear(y, heads, axes=axes, bias=True, name=name)
                for name in ("query", "key", "value")
            )
            out = attend(q, k, v, mask)
            out = linear(
                out,
                x.shape[-1:],
                num_in=2,
                axes=("heads", "head_dim", "embed"),
                bias=True,
                name="output",
            )
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
