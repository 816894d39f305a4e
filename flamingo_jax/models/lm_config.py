"""Shape and options of the language model: Chinchilla's by default, or another family's."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flamingo_jax.core import ranges
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.stack import Remat
from flamingo_jax.nn.embed import RotaryScaling
from flamingo_jax.nn.feedforward import GATED, Activation
from flamingo_jax.nn.lora import LoRAConfig
from flamingo_jax.nn.norm import EPSILON


@dataclasses.dataclass(frozen=True)
class LMConfig:
    """Shape and options of the language model; the defaults are Chinchilla's.

    Attributes:
        vocab_size: V, the tokenizer's pieces, without new tokens; the programs replace 0 by the
            tokenizer's.
        num_layers, width, num_heads: as in Table 4 of the paper.
        head_dim: K; 0 = width / num_heads.
        num_kv_heads: G; 0 = num_heads.
        mlp_width: M; 0 = 4 * width.
        norm: RMSNorm or LayerNorm.
        norm_epsilon, norm_bias: of all norms; only a LayerNorm has a bias.
        norm_from_one: the weight of an RMSNorm is the scale's difference from 1 (Gemma).
        norm_place: norms before attention and feed-forward, after them and before the residual sum
            (OLMo 2), or both (Gemma 2).
        position: how tokens know their order (`nn.embed`).
        rotary_base, rotary_fraction, rotary_scaling: of rotary positions.
        max_length: rows of the table of learned positions.
        sliding_window: number of tokens that a token attends, itself included; 0 = all before it.
        global_every: with a window, every n-th layer attends all tokens before (Gemma 2: 2; Gemma
            3: 6); 0 = none does.
        local_rotary_base: rotary base of the layers with a window, which are not scaled (Gemma 3);
            0 = all layers have `rotary_base` and `rotary_scaling`.
        activation: of the feed-forward layers.
        attention_bias: biases of queries, keys, values and the output projection.
        qkv_bias: biases of queries, keys and values only (Qwen2).
        mlp_bias: biases of the feed-forward layers.
        parallel_residual: attention and feed-forward read the same x (GPT-NeoX).
        qk_norm: a norm over all heads of the queries together, and one over the keys (MPT, OLMo 2).
        head_norm: a norm over each head's queries, and one over each head's keys (Qwen3).
        score_size: scores of attention are divided by the square root of this; 0 = `head_dim`.
        score_cap, logit_cap: scores of attention, and logits, stay between -cap and cap
            (`nn.attention.capped`, Gemma 2); 0 = they have no bound.
        scaled_embedding: embedded tokens are multiplied by the square root of the width (Gemma).
        tied_head: the head is the embedding table.
        qkv_conv_width: width of a depthwise causal convolution on q, k and v (Primer, So et al.
            2021); 0 = no convolution. Not in the paper.
        vocab_multiple: the table is padded to a multiple of this.
        remat: see `core.stack.Stack`.
        lora: adapters of the blocks, which the flamingo stage trains (`unfrozen = ("lm.lora",)`);
            None = none.
        fused: whether the block's weights are in the compute form (`models.frozen`).
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    head_dim: int = 0
    num_kv_heads: int = 0
    mlp_width: int = 0
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = EPSILON
    norm_bias: bool = True
    norm_from_one: bool = False
    norm_place: Literal["before", "after", "both"] = "before"
    position: Literal["relative", "rotary", "alibi", "learned", "none"] = "relative"
    rotary_base: float = 10_000.0
    rotary_fraction: float = 1.0
    rotary_scaling: RotaryScaling = RotaryScaling()
    max_length: int = 2048
    sliding_window: int = 0
    global_every: int = 0
    local_rotary_base: float = 0.0
    activation: Activation = "gelu"
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = True
    parallel_residual: bool = False
    qk_norm: bool = False
    head_norm: bool = False
    score_size: int = 0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    scaled_embedding: bool = False
    tied_head: bool = True
    qkv_conv_width: int = 0
    vocab_multiple: int = 128
    remat: Remat = "none"
    lora: LoRAConfig | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        sizes = ("num_layers", "width", "num_heads", "max_length", "vocab_multiple")
        ranges.check(self, ranges.whole(1), *sizes)
        ranges.check(self, ranges.whole(0), "vocab_size", "head_dim", "num_kv_heads", "mlp_width")
        ranges.check(self, ranges.whole(0), "sliding_window", "qkv_conv_width")
        ranges.check(self, ranges.whole(0), "global_every", "score_size")
        ranges.check(self, ranges.Range(0, 1e6), "score_cap", "logit_cap")
        ranges.check(self, ranges.Range(0, 1e12), "local_rotary_base")
        ranges.check(self, ranges.EPSILON, "norm_epsilon")
        ranges.check(self, ranges.Range(0, 1e12, above=True), "rotary_base")
        ranges.check(self, ranges.Range(0, 1, above=True), "rotary_fraction")
        if self.lora and "gate" in self.lora.targets and self.activation not in GATED:
            raise FieldError(
                f"lora.targets has 'gate', and activation is {self.activation!r}, which has no "
                "gate: leave it out."
            )
        if self.fused and not self.can_fuse:
            raise ValueError(
                "fused: there are biases, or fewer key and value heads than query "
                "heads; set it to False."
            )
        if self.norm_from_one and self.norm != "rms":
            raise FieldError(
                f"norm_from_one is True, and norm is {self.norm!r}: only an RMSNorm has such a "
                "weight. Expected norm = 'rms'; or norm_from_one = False."
            )
        if self.qk_norm and self.head_norm:
            raise FieldError(
                "qk_norm and head_norm are both True: a model norms all heads together, or each. "
                "Set one of them to False."
            )
        if (self.global_every or self.local_rotary_base) and not self.sliding_window:
            raise FieldError(
                f"global_every is {self.global_every}, local_rotary_base is "
                f"{self.local_rotary_base} and sliding_window is 0: no layer has a window. Give "
                "the window, or set both to 0."
            )
        if self.local_rotary_base and self.position != "rotary":
            raise FieldError(
                f"local_rotary_base is {self.local_rotary_base}, and position is "
                f"{self.position!r}; expected 'rotary'. Set local_rotary_base to 0."
            )
        if not self.head_dim and self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} is not divisible by num_heads {self.num_heads}: give head_dim."
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}."
            )

    @property
    def head_size(self) -> int:
        """K, the size of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, the number of key/value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each layer; 0 = it attends all tokens before."""
        every = self.global_every
        return tuple(
            0 if every and number % every == 0 else self.sliding_window
            for number in range(1, self.num_layers + 1)
        )

    @property
    def can_fuse(self) -> bool:
        """True if queries, keys and values can be one product."""
        return not (self.attention_bias or self.qkv_bias) and self.kv_heads == self.num_heads

    @property
    def table_rows(self) -> int:
        """Rows of the padded embedding table."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
