"""A vision transformer's weights under the names of any publisher: one table for all of them.

patch convolution [E, 3, p, p] -> patch_embedding/w [p, p, 3, E] ;  query, key, value [E, E] -> [E, H, K], also out of one [3E, E]
"""

from __future__ import annotations

import dataclasses

import numpy as np

from flamingo_jax.conversion.mapping import Rule, Rules, Skip
from flamingo_jax.conversion.transforms import (
    chain,
    chunk,
    conv,
    flat,
    heads_bias,
    heads_in,
    heads_out,
    identity,
    transpose,
)
from flamingo_jax.models.vit import ViTConfig


@dataclasses.dataclass(frozen=True)
class Names:
    """What a publisher calls the parts.

    Each has a `.weight`, and all but the first three a `.bias`.

    Attributes:
        patch: the convolution.
        first: the class token, whole name.
        positions: the table of positions, whole name.
        pre_norm: before the blocks.
        block: a block's prefix, with `{layer}`; the names below it follow.
        attention_norm, out, mlp_norm, up, down: parts of a block.
        qkv: (weight, bias) of query, key and value, or of the three in one.
        final_norm: after the blocks.
    """

    patch: str
    first: str
    positions: str
    pre_norm: str
    block: str
    attention_norm: str
    qkv: tuple[tuple[str, str], ...]
    out: str
    mlp_norm: str
    up: str
    down: str
    final_norm: str


def vision_rules(config: ViTConfig, names: Names) -> Rules:
    """Returns the rules of a ViT, their targets below its module.

    `mapping.with_prefixes` moves them to where it stands.

    Args:
        config: of the ViT; without `final_norm` the files' last norm is skipped.
        names: what the files call its parts.
    """
    heads = (config.num_heads, config.width // config.num_heads)
    block, layer = names.block, "layers/block/"
    rules = [
        Rule(f"{names.patch}.weight", "patch_embedding/w", conv),
        Rule(names.first, "class_embedding", flat),
        Rule(names.positions, "positions", _rows_of_table),
        *norm_rules(names.pre_norm, "pre_norm"),
        *norm_rules(f"{block}{names.attention_norm}", f"{layer}attention_norm"),
        *norm_rules(f"{block}{names.mlp_norm}", f"{layer}mlp_norm"),
        *projection_rules(
            names, block, heads, attention=f"{layer}attention/", out="out", mlp=f"{layer}mlp/"
        ),
    ]
    if config.final_norm:
        return (*rules, *norm_rules(names.final_norm, "final_norm"))
    last = names.final_norm.replace(".", r"\.")
    return (
        *rules,
        Skip(rf"{last}\.(weight|bias)", "the last norm: the features are taken before it"),
    )


def norm_rules(source: str, target: str) -> Rules:
    """The rules of a LayerNorm: its weight is our scale, its bias our offset."""
    return (Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/offset"))


def projection_rules(
    names: Names, block: str, heads: tuple[int, int], *, attention: str, out: str, mlp: str
) -> tuple[Rule, ...]:
    """Rules of the linear maps of a block of either tower.

    Args:
        names: the publisher's.
        block: what they begin with.
        heads: H, K.
        attention: what our names of query, key, value and `out` begin with.
        out: our name of the map out of the heads.
        mlp: what our names of up and down begin with.
    """
    rules = [
        Rule(f"{block}{names.out}.weight", f"{attention}{out}/w", heads_out(*heads)),
        Rule(f"{block}{names.out}.bias", f"{attention}{out}/b"),
    ]
    for i, part in enumerate(("query", "key", "value")):
        weight, bias = names.qkv[i if len(names.qkv) > 1 else 0]
        take = identity if len(names.qkv) > 1 else chunk(i, 3)
        rules += [
            Rule(block + weight, f"{attention}{part}/w", chain(take, heads_in(*heads))),
            Rule(block + bias, f"{attention}{part}/b", chain(take, heads_bias(*heads))),
        ]
    for source, target in ((names.up, "up"), (names.down, "down")):
        rules += [
            Rule(f"{block}{source}.weight", f"{mlp}{target}/w", transpose),
            Rule(f"{block}{source}.bias", f"{mlp}{target}/b"),
        ]
    return tuple(rules)


def _rows_of_table(x: np.ndarray) -> np.ndarray:
    """[1, P, E], or as it is."""
    return x.reshape(-1, x.shape[-1])
