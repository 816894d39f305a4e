"""The rows of a language model's block, in the words of the families' tables; targets begin with "lm/"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flamingo_jax.conversion import converts
from flamingo_jax.conversion.converts import Convert
from flamingo_jax.conversion.mapping import Row, Rows
from flamingo_jax.models.lm_config import LMConfig

BLOCK = "lm/blocks/block/"
PARTS = ("query", "key", "value")


def norm(lm: LMConfig, source: str, target: str) -> Rows:
    """A norm: its scale, and its offset where the block has one."""
    with_offset = lm.norm == "layer" and lm.norm_bias
    return (
        Row(f"{source}.weight", f"{target}/scale"),
        *([Row(f"{source}.bias", f"{target}/offset")] if with_offset else []),
    )


def linear(source: str, target: str, convert: Convert, bias: Convert | None) -> Rows:
    """A linear map; `convert`, `bias`: how its weight and its bias are laid out anew, None = it has no bias."""
    return (
        Row(f"{source}.weight", f"{target}/w", convert),
        *([Row(f"{source}.bias", f"{target}/b", bias)] if bias else []),
    )


def feed_forward(lm: LMConfig, names: Mapping[str, str], convert: Convert = converts.transpose) -> Rows:
    """The feed-forward; `names`: part (up, down, gate) -> its name."""
    bias = converts.identity if lm.mlp_bias else None
    return tuple(row for part, name in names.items() for row in linear(name, f"{BLOCK}mlp/{part}", convert, bias))


def out(lm: LMConfig, source: str, *before: Convert) -> Rows:
    """The attention's way out; `before`: what brings its weight to [D, H*K]."""
    convert = converts.chain(*before, converts.heads_out(lm.num_heads, lm.head_size))
    return linear(source, f"{BLOCK}attention/out", convert, converts.identity if lm.attention_bias else None)


def separate(lm: LMConfig, names: Sequence[str]) -> Rows:
    """Queries, keys and values with a map each, by these names."""
    rows: Rows = ()
    for part, name, heads in zip(PARTS, names, (lm.num_heads, lm.kv_heads, lm.kv_heads), strict=True):
        bias = converts.heads_bias(heads, lm.head_size) if lm.attention_bias or lm.qkv_bias else None
        rows += linear(name, f"{BLOCK}attention/{part}", converts.heads_in(heads, lm.head_size), bias)
    return rows


def fused(lm: LMConfig, source: str, take: Callable[[int], Convert], *before: Convert) -> Rows:
    """Queries, keys and values in one map; `before`: what brings its weight to [3*H*K, D]; `take`: part 0, 1 or 2 of its rows."""
    shape = lm.num_heads, lm.head_size
    rows: Rows = ()
    for number, part in enumerate(PARTS):
        convert = converts.chain(*before, take(number), converts.heads_in(*shape))
        bias = converts.chain(take(number), converts.heads_bias(*shape)) if lm.attention_bias else None
        rows += linear(source, f"{BLOCK}attention/{part}", convert, bias)
    return rows
