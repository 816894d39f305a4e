"""The compute form of frozen weights: changed once into what is fastest to compute with.

    stored form (init, checkpoints)                compute form
    NFNet: w, gain, bias                           w (already standardised), bias
    LM block: query, key, value [D H K] each       qkv [3 H K D]
              relative [D H K]                     relative [H K D]

Both forms compute the same function. Only frozen weights can have the compute form: a trained
convolution would no longer be standardised, and checkpoints have the stored form. A tower that is
trained (`Unfrozen`) stays in the stored form. Two fields of the
configs say which form a module expects: `NFNetConfig.weight_standardisation` and `LMConfig.fused`.
Weights in 8 bits (`models.int8`) are changed in the same way, together with their scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Generic, Literal, TypeVar

import jax
import jax.numpy as jnp

from flamingo_jax.core import trees
from flamingo_jax.core.notation import Array
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.core.trees import Params
from flamingo_jax.models.flamingo import FlamingoConfig
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.nn import lora
from flamingo_jax.nn.conv import standardise_weights

Config = TypeVar("Config")
Unfrozen = Literal["vision", "lm", "lm.lora"]
"""What is trained of the towers, which the paper freezes: a whole one, or adapters of the LM."""


@dataclasses.dataclass(frozen=True)
class Form(Generic[Config]):
    """The two forms of a model's weights.

    Attributes:
        stored: config of the model with weights in the stored form.
        computed: config of the same model with weights in the compute form.
        change: function from the stored form to the compute form.
    """

    stored: Config
    computed: Config
    change: Callable[[Params], Params]


def unchanged(config: Config) -> Form[Config]:
    """Returns the form of a model that computes with weights in the stored form."""
    return Form(config, config, lambda params: params)


def trains(unfrozen: Collection[Unfrozen]) -> Callable[[str], bool]:
    """Returns a function that says whether a weight of the LM's blocks is trained.

    Its argument is the path of a weight below the stack.
    """
    return lambda path: "lm" in unfrozen or lora.is_adapter(path)


def of_flamingo(config: FlamingoConfig, unfrozen: Collection[Unfrozen]) -> Form[FlamingoConfig]:
    """Returns the compute form of a Flamingo's towers, without that of those in `unfrozen`.

    Adapters have the same form in both.
    """
    changes_vision = isinstance(config.vision, NFNetConfig) and "vision" not in unfrozen
    changes_lm = config.lm.can_fuse and "lm" not in unfrozen
    vision = config.vision
    if isinstance(vision, NFNetConfig) and changes_vision:
        vision = dataclasses.replace(vision, weight_standardisation="folded")
    computed = dataclasses.replace(
        config, vision=vision, lm=dataclasses.replace(config.lm, fused=changes_lm)
    )

    def change(params: Params) -> Params:
        encoder = trees.under(params, "flamingo/vision")
        blocks = trees.under(params, "flamingo/lm/blocks")
        changed = {*encoder, *blocks}
        rest = {name: weights for name, weights in params.items() if name not in changed}
        encoder = compute_form_of_nfnet(encoder) if changes_vision else encoder
        blocks = _below("flamingo/lm/blocks", config.lm, blocks) if changes_lm else blocks
        return trees.merge(rest, encoder, blocks)

    return Form(config, computed, change)


def _below(prefix: str, config: LMConfig, blocks: Params) -> dict[str, dict[str, Any]]:
    changed = compute_form_of_blocks(config, trees.subtree(blocks, prefix))
    return {f"{prefix}/{module}": weights for module, weights in changed.items()}


def compute_form_of_nfnet(params: Params) -> dict[str, dict[str, Any]]:
    """Returns an NFNet's weights, standardised: {w, gain, bias} becomes {w, bias}."""
    changed: dict[str, dict[str, Any]] = {}
    for module, weights in params.items():
        changed[module] = dict(weights)
        if {"w", "gain"} <= set(weights):
            changed[module]["w"] = standardise_weights(weights["w"], changed[module].pop("gain"))
    return changed


def compute_form_of_blocks(config: LMConfig, blocks: Params) -> dict[str, dict[str, Any]]:
    """Returns an LM's stacked blocks with one weight for queries, keys and values.

    A sharded layer then gathers its input once and reduces one gradient. The contracted axis is
    last, because otherwise the TPU compiler copies the weights into this order.

    Args:
        config: of the LM, for the stored form.
        blocks: {module: weights} of a stack, below its name.
    """
    changed = {module: dict(weights) for module, weights in blocks.items()}
    names = [f"block/attention/{name}" for name in ("query", "key", "value")]
    parts = [_contracted_last(changed.pop(name)["w"]) for name in names]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays, axis=1), *parts)
    changed["block/attention/qkv"] = {"w": stacked}
    if config.position == "relative":
        relative = changed["block/attention/relative"]["w"]
        changed["block/attention/relative"] = {"w": _contracted_last(relative)}
    return changed


def _contracted_last(w: Array | Int8Weight) -> Any:
    return jax.tree.map(lambda array: jnp.moveaxis(array, 1, -1), w)
