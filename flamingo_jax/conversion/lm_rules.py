"""Makes the rules of the parts of a language model's block; targets begin with "lm/"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flamingo_jax.conversion import transforms
from flamingo_jax.conversion.mapping import Rule, Rules
from flamingo_jax.conversion.transforms import Transform
from flamingo_jax.models.lm_config import LMConfig

BLOCK = "lm/blocks/block/"
PARTS = ("query", "key", "value")


def norm(lm: LMConfig, source: str, target: str) -> Rules:
    """Returns the rules of a norm: its scale, and its offset if the block has one."""
    with_offset = lm.norm == "layer" and lm.norm_bias
    return (
        Rule(f"{source}.weight", f"{target}/scale"),
        *([Rule(f"{source}.bias", f"{target}/offset")] if with_offset else []),
    )


def linear(source: str, target: str, transform: Transform, bias: Transform | None) -> Rules:
    """Returns the rules of a linear map.

    Args:
        source: its name in the files.
        target: its path in the model.
        transform: applied to the weight.
        bias: applied to the bias; None = the map has no bias.
    """
    return (
        Rule(f"{source}.weight", f"{target}/w", transform),
        *([Rule(f"{source}.bias", f"{target}/b", bias)] if bias else []),
    )


def feed_forward(
    lm: LMConfig, names: Mapping[str, str], transform: Transform = transforms.transpose
) -> Rules:
    """Returns the rules of the feed-forward; `names`: part (up, down, gate) -> its name."""
    bias = transforms.identity if lm.mlp_bias else None
    return tuple(
        rule
        for part, name in names.items()
        for rule in linear(name, f"{BLOCK}mlp/{part}", transform, bias)
    )


def out(lm: LMConfig, source: str, *before: Transform) -> Rules:
    """Returns the rules of the output of attention; `before` changes its weight to [D, H*K]."""
    transform = transforms.chain(*before, transforms.heads_out(lm.num_heads, lm.head_size))
    bias = transforms.identity if lm.attention_bias else None
    return linear(source, f"{BLOCK}attention/out", transform, bias)


def separate(lm: LMConfig, names: Sequence[str]) -> Rules:
    """Returns the rules of queries, keys and values that are three maps with these names."""
    has_bias = lm.attention_bias or lm.qkv_bias
    num_heads = (lm.num_heads, lm.kv_heads, lm.kv_heads)
    rules: Rules = ()
    for part, name, heads in zip(PARTS, names, num_heads, strict=True):
        bias = transforms.heads_bias(heads, lm.head_size) if has_bias else None
        weight = transforms.heads_in(heads, lm.head_size)
        rules += linear(name, f"{BLOCK}attention/{part}", weight, bias)
    return rules


def fused(lm: LMConfig, source: str, take: Callable[[int], Transform], *before: Transform) -> Rules:
    """Returns the rules of queries, keys and values that are one map.

    Args:
        lm: the model.
        source: name of the map in the files.
        take: returns the transform that takes part 0, 1 or 2 of the rows.
        *before: transforms that change the weight to [3*H*K, D].
    """
    shape = lm.num_heads, lm.head_size
    rules: Rules = ()
    for number, part in enumerate(PARTS):
        weight = transforms.chain(*before, take(number), transforms.heads_in(*shape))
        bias = transforms.chain(take(number), transforms.heads_bias(*shape))
        rules += linear(
            source, f"{BLOCK}attention/{part}", weight, bias if lm.attention_bias else None
        )
    return rules
