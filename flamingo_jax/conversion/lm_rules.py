"""The rules of a language model's block, in the words of the families' tables.

Targets begin with "lm/".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flamingo_jax.conversion import transforms
from flamingo_jax.conversion.mapping import Rule, Rules
from flamingo_jax.conversion.transforms import Transform
from flamingo_jax.models.lm_config import LMConfig

BLOCK = "lm/blocks/block/"
PARTS = ("query", "key", "value")


def norm(lm: LMConfig, source: str, target: str) -> Rules:
    """A norm: its scale, and its offset where the block has one."""
    with_offset = lm.norm == "layer" and lm.norm_bias
    return (
        Rule(f"{source}.weight", f"{target}/scale"),
        *([Rule(f"{source}.bias", f"{target}/offset")] if with_offset else []),
    )


def linear(source: str, target: str, transform: Transform, bias: Transform | None) -> Rules:
    """A linear map; `transform`, `bias`.

    How its weight and its bias are laid out anew, None = it has no bias.
    """
    return (
        Rule(f"{source}.weight", f"{target}/w", transform),
        *([Rule(f"{source}.bias", f"{target}/b", bias)] if bias else []),
    )


def feed_forward(
    lm: LMConfig, names: Mapping[str, str], transform: Transform = transforms.transpose
) -> Rules:
    """The feed-forward; `names`: part (up, down, gate) -> its name."""
    bias = transforms.identity if lm.mlp_bias else None
    return tuple(
        rule
        for part, name in names.items()
        for rule in linear(name, f"{BLOCK}mlp/{part}", transform, bias)
    )


def out(lm: LMConfig, source: str, *before: Transform) -> Rules:
    """The attention's way out; `before`: what brings its weight to [D, H*K]."""
    transform = transforms.chain(*before, transforms.heads_out(lm.num_heads, lm.head_size))
    return linear(
        source,
        f"{BLOCK}attention/out",
        transform,
        transforms.identity if lm.attention_bias else None,
    )


def separate(lm: LMConfig, names: Sequence[str]) -> Rules:
    """Queries, keys and values with a map each, by these names."""
    rules: Rules = ()
    for part, name, heads in zip(
        PARTS, names, (lm.num_heads, lm.kv_heads, lm.kv_heads), strict=True
    ):
        bias = (
            transforms.heads_bias(heads, lm.head_size) if lm.attention_bias or lm.qkv_bias else None
        )
        rules += linear(
            name, f"{BLOCK}attention/{part}", transforms.heads_in(heads, lm.head_size), bias
        )
    return rules


def fused(lm: LMConfig, source: str, take: Callable[[int], Transform], *before: Transform) -> Rules:
    """Queries, keys and values in one map; `before`: what brings its weight to [3*H*K, D]; `take`.

    Part 0, 1 or 2 of its rows.
    """
    shape = lm.num_heads, lm.head_size
    rules: Rules = ()
    for number, part in enumerate(PARTS):
        transform = transforms.chain(*before, take(number), transforms.heads_in(*shape))
        bias = (
            transforms.chain(take(number), transforms.heads_bias(*shape))
            if lm.attention_bias
            else None
        )
        rules += linear(source, f"{BLOCK}attention/{part}", transform, bias)
    return rules
