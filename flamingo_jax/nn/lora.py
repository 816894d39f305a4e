"""LoRA: a frozen product gets a trained update of low rank (Hu et al. 2021). Not in the paper.

    x [... in] --w (frozen)------------------> [... out]
        |                                         +
        +--a [in R]--> [... R] --b [R out]--> * alpha / R

It is a cheap alternative to training the whole language model (paper, Table 3, row viii). `b` is 0
at the start, so that the model starts as it was, to the bit. An export has the update added to w
(`merged`), and no adapters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from flamingo_jax.core import ranges, trees
from flamingo_jax.core.axes import constrain
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.notation import Array, Float
from flamingo_jax.core.params import Axes, param
from flamingo_jax.nn.linear import product

_SUFFIX = "_lora"


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """The adapters of the language model's blocks; the defaults are those of Hu et al. for GPT-3.

    Attributes:
      rank: R.
      alpha: the update is multiplied by alpha / R.
      targets: the products with an adapter; "gate" is the second one into the hidden width, in
          "swiglu" alone.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[Literal["query", "key", "value", "out", "up", "gate", "down"], ...] = (
        "query",
        "value",
    )

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1), "rank")
        ranges.check(self, ranges.Range(0, above=True), "alpha")
        if not self.targets:
            raise FieldError("targets is (); expected at least one product, such as 'query'.")

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / self.rank


class LoRA(hk.Module):
    """The update of one product."""

    def __init__(
        self, config: LoRAConfig, out_shape: tuple[int, ...], *, axes: Axes, num_in: int, name: str
    ):
        """Describes the update; arguments as of `nn.linear.Linear`."""
        super().__init__(name=name)
        self.config, self.out_shape, self.axes, self.num_in = config, out_shape, axes, num_in

    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """Returns x a b * alpha / R, in the dtype of x."""
        rank, in_shape = self.config.rank, x.shape[x.ndim - self.num_in :]
        into, out_of = (*self.axes[: self.num_in], "rank"), ("rank", *self.axes[self.num_in :])
        init = hk.initializers.TruncatedNormal(math.prod(in_shape) ** -0.5)
        a = param("a", (*in_shape, rank), into, init)
        b = param("b", (rank, *self.out_shape), out_of, jnp.zeros)
        hidden = constrain(product(x, a, tuple(range(self.num_in))), "batch", "length", None)
        return self.config.scale * product(hidden, b)


def adapted(
    y: Float[Array, "..."],
    x: Float[Array, "..."],
    config: LoRAConfig | None,
    *,
    axes: Axes,
    num_in: int = 1,
    name: str,
) -> Float[Array, "..."]:
    """Returns y, the product of x with a weight, and the update of that weight if it has one.

    Args:
        y: the product.
        x: its input.
        config: the adapters; None = none.
        axes: logical axes of the weight: the contracted ones, then the others.
        num_in: number of contracted axes.
        name: of the product, as in `LoRAConfig.targets`.
    """
    if config is None or name not in config.targets:
        return y
    out_shape = y.shape[x.ndim - num_in :]
    return y + LoRA(config, out_shape, axes=axes, num_in=num_in, name=f"{name}{_SUFFIX}")(x)


def is_adapter(path: str) -> bool:
    """Returns True for the path of a weight of an adapter."""
    module, _, name = path.rpartition("/")
    return module.endswith(_SUFFIX) and name in ("a", "b")


def float32_where_adapted(
    frozen: trees.Params, trained: trees.Params
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the shapes of frozen weights, with float32 for those that `merged` changes.

    Args:
        frozen: tree of jax.ShapeDtypeStruct.
        trained: has the adapters.
    """
    targets = {module.removesuffix(_SUFFIX) for module in trained if module.endswith(_SUFFIX)}
    flat = trees.flatten(frozen)
    products = {path for path in flat if path.removesuffix("/w") in targets}
    return trees.unflatten(
        {
            path: leaf.update(dtype=jnp.float32) if path in products else leaf
            for path, leaf in flat.items()
        }
    )


def merged(params: trees.Params, config: LoRAConfig) -> dict[str, dict[str, Array]]:
    """Returns weights in the stored form without adapters: w + a b * alpha / R in their places.

    Args:
        params: with the adapters of stacked blocks.
        config: of the adapters.
    """
    changed = {module: dict(weights) for module, weights in params.items()}
    for module in [module for module in changed if module.endswith(_SUFFIX)]:
        adapter, weights = changed.pop(module), changed[module.removesuffix(_SUFFIX)]
        add = jax.jit(functools.partial(_sum, scale=config.scale))
        weights["w"] = add(weights["w"], adapter["a"], adapter["b"])
    return changed


def _sum(w: Array, a: Array, b: Array, *, scale: float) -> Array:
    multiply = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    return w.astype(jnp.float32) + scale * jax.vmap(multiply)(a, b)
