"""Makes the rules of a vision transformer for the names of any publisher.

patch convolution [E, 3, p, p]                          -> patch_embedding/w [p, p, 3, E]
query, key, value [E, E] each, or together [3E, E]      -> [E, H, K] each
"""

from __future__ import annotations

import dataclasses

import numpy as np

from flamingo_jax.conversion.mapping import Rule, Rules, Skip
from flamingo_jax.conversion.transforms import (
    Transform,
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
    """A publisher's names of the parts, without the endings `.weight` and `.bias`.

    Attributes:
        patch: the patch convolution.
        class_token: full name; None = there is none.
        positions: full name of the position table.
        registers: full name of these tokens, if there are some.
        pre_norm: the norm before the blocks; None = there is none.
        block: prefix of a block, with `{layer}`. The names of its parts come after it.
        attention_norm, out, mlp_norm, up, down: parts of a block.
        attention_scale, mlp_scale: full names of the layer scales of a block, if it has them.
        gate_and_up: the gate and `up` in one map; None = there is no gate.
        qkv: (weight, bias) of query, key and value, or one pair for the three together.
        final_norm: the norm after the blocks.
    """

    patch: str
    class_token: str | None
    positions: str
    pre_norm: str | None
    block: str
    attention_norm: str
    qkv: tuple[tuple[str, str], ...]
    out: str
    mlp_norm: str
    up: str
    down: str
    final_norm: str
    registers: str = ""
    attention_scale: str = ""
    mlp_scale: str = ""
    gate_and_up: str | None = None


def vision_rules(config: ViTConfig, names: Names, *, patch: Transform = conv) -> Rules:
    """Returns the rules of a ViT; `mapping.with_prefixes` adds the prefixes.

    Args:
        config: the ViT. Without `final_norm` the last norm in the files is skipped.
        names: names in the files.
        patch: changes the weight of the patches to [p, p, 3, E].
    """
    heads = (config.num_heads, config.width // config.num_heads)
    block, layer = names.block, "layers/block/"
    rules = [
        Rule(f"{names.patch}.weight", "patch_embedding/w", patch),
        Rule(names.positions, "positions", _rows_of_table),
        *norm_rules(f"{block}{names.attention_norm}", f"{layer}attention_norm"),
        *norm_rules(f"{block}{names.mlp_norm}", f"{layer}mlp_norm"),
        *projection_rules(
            names, block, heads, attention=f"{layer}attention/", out="out", mlp=f"{layer}mlp/"
        ),
    ]
    if names.class_token:
        rules.append(token_rule(names.class_token, "class_embedding"))
    if names.pre_norm:
        rules += norm_rules(names.pre_norm, "pre_norm")
    if config.patch_bias:
        rules.append(Rule(f"{names.patch}.bias", "patch_embedding/b"))
    if config.registers:
        rules.append(Rule(names.registers, "registers", _rows_of_table))
    if config.layer_scale:
        for source, target in ((names.attention_scale, "attention"), (names.mlp_scale, "mlp")):
            rules.append(Rule(block + source, f"{layer}{target}_scale/scale"))
    if config.final_norm:
        return (*rules, *norm_rules(names.final_norm, "final_norm"))
    last = names.final_norm.replace(".", r"\.")
    why = "the last norm: the features are taken before it"
    return (*rules, Skip(rf"{last}\.(weight|bias)", why))


def token_rule(source: str, target: str) -> Rule:
    """Returns the rule of one learnt token, [1, 1, E] in the files."""
    return Rule(source, target, flat)


def norm_rules(source: str, target: str) -> Rules:
    """Returns the rules of a LayerNorm: its weight is our scale, its bias our offset."""
    return (Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/offset"))


def projection_rules(
    names: Names, block: str, heads: tuple[int, int], *, attention: str, out: str, mlp: str
) -> tuple[Rule, ...]:
    """Returns the rules of the linear maps of a block of either tower.

    Args:
        names: names in the files.
        block: prefix of the block in the files.
        heads: H, K.
        attention: our prefix of query, key, value and `out`.
        out: our name of the output of attention.
        mlp: our prefix of up and down.
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
    maps: list[tuple[str, str, Transform]] = [
        (names.up, "up", identity),
        (names.down, "down", identity),
    ]
    if names.gate_and_up:
        joined = names.gate_and_up
        maps = [(joined, "gate", chunk(0, 2)), (joined, "up", chunk(1, 2)), maps[1]]
    for source, target, take in maps:
        rules += [
            Rule(f"{block}{source}.weight", f"{mlp}{target}/w", chain(take, transpose)),
            Rule(f"{block}{source}.bias", f"{mlp}{target}/b", take),
        ]
    return tuple(rules)


def _rows_of_table(x: np.ndarray) -> np.ndarray:
    """[1, P, E] or [P, E] -> [P, E]."""
    return x.reshape(-1, x.shape[-1])
