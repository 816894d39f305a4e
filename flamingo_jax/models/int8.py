"""Frozen towers in 8 bits: which weights, and how they are made from those of an export.

    of                                  in 8 bits                               scales
    LM          attention, feed-forward   w                                     output channels
                embedding, head           table                                 rows
    NFNet       1x1 convolutions          w, standardised and times its gain    output channels
                squeeze-and-excite        w                                     output channels
    ViT         attention, feed-forward   w                                     output channels

These are the weights that a model makes by `core.params.weight`, below the language model and the
vision encoder. All others keep the compute dtype: norms, biases, k x k convolutions, embeddings of
patches and of positions. Weights outside of the towers, such as the cross-attention, do so too.

The rounding comes before `models.frozen` changes towers into the compute form, so that a tower is
rounded while it is read, a few weights at a time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flamingo_jax.core import params as params_lib
from flamingo_jax.core import trees
from flamingo_jax.core.precision import Int8Weight, Policy, is_int8
from flamingo_jax.core.trees import Params
from flamingo_jax.models.kinds import Init
from flamingo_jax.nn.conv import standardise_weights
from flamingo_jax.sharding.compile import jit_giving_up

_TOWERS = re.compile(r"((flamingo|contrastive)/)?(lm|vision)/.*")

Contracted = Mapping[str, tuple[int, ...]]


def contracted_axes(init: Init, policy: Policy) -> dict[str, tuple[int, ...]]:
    """Returns the weights that a policy puts into 8 bits, with the axes that products contract.

    Args:
        init: of a model, for weights in the stored form.
        policy: of the run.

    Returns:
        {path: axes}, for weights in the stored form; {} if the policy has no 8 bits.
    """
    if policy.frozen != "int8":
        return {}
    found = params_lib.contracted_of(init, params_lib.abstract_key())
    return {path: axes for path, axes in found.items() if _TOWERS.fullmatch(path)}


def rounded(params: Params, contracted: Contracted) -> dict[str, dict[str, Any]]:
    """Returns weights with those of `contracted` in 8 bits, and without the gains of these.

    Args:
        params: in the stored form; whole modules of a model, or all.
        contracted: from `contracted_axes`. Weights that are in 8 bits already stay as they are.
    """
    changed: dict[str, dict[str, Any]] = {}
    for module, weights in params.items():
        changed[module] = dict(weights)
        for name, w in weights.items():
            axes = contracted.get(f"{module}/{name}")
            if axes is None or isinstance(w, Int8Weight):
                continue
            if "gain" in weights:
                w = standardise_weights(w, changed[module].pop("gain"))
            changed[module][name] = Int8Weight.of(w, axes)
    return changed


def rounded_and_cast(params: Params, contracted: Contracted, policy: Policy) -> Params:
    """Returns what `rounded` returns, in the dtypes of a policy."""
    found: Params = policy.cast(rounded(params, contracted))
    return found


def as_read(abstract: Params, contracted: Contracted) -> dict[str, dict[str, Any]]:
    """Returns the shapes with float32 for all that `rounded` rounds: it loses no bits before that.

    Args:
        abstract: tree of jax.ShapeDtypeStruct.
        contracted: from `contracted_axes`.
    """

    def read(path: str, leaf: Any) -> Any:
        module, _, name = path.rpartition("/")
        if is_int8(leaf):
            return leaf
        is_rounded = path in contracted or (name == "gain" and f"{module}/w" in contracted)
        return leaf.update(dtype=jnp.float32) if is_rounded else leaf

    flat = trees.flatten(abstract)
    return trees.unflatten({path: read(path, leaf) for path, leaf in flat.items()})


def as_stored(init: Init, stored: Params) -> Params:
    """Returns the shapes of a model's weights, with those in 8 bits that are so in an export.

    Args:
        init: of a model.
        stored: the shapes of the export's weights.
    """
    contracted = contracted_axes(init, Policy(frozen="int8"))
    some = {path: contracted[path] for path, leaf in trees.flatten(stored).items() if is_int8(leaf)}
    shapes: Params = jax.eval_shape(lambda key: rounded(init(key), some), params_lib.abstract_key())
    return shapes


def rounding(
    policy: Policy, contracted: Contracted, shardings: Params | None = None
) -> Callable[[Params], Params]:
    """Returns a compiled function that rounds and casts weights right after they are read.

    It takes some whole modules at a time, and gives up their buffers.

    Args:
        policy: of the run.
        contracted: from `contracted_axes`.
        shardings: where all rounded weights go, {module: {name: sharding}}; None = one device.
    """
    change = functools.partial(rounded_and_cast, contracted=contracted, policy=policy)
    if shardings is None:
        return jit_giving_up(change)
    of = lambda some: {module: shardings[module] for module in some}
    return lambda some: jit_giving_up(change, of(some))(some)


def cast(init: Init, params: Params, policy: Policy) -> Params:
    """Returns all weights of a model in the dtypes of a policy, towers in 8 bits if it says so."""
    return rounded_and_cast(params, contracted_axes(init, policy), policy)
