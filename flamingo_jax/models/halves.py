"""Two halves of the rows go through the LM's blocks in turn: one is sent while one is computed.

    a chip computes             meanwhile its links
    attention of half 0         sum the last product of half 1, and gather its next input
    attention of half 1         sum the product of half 0, and gather its next input
    feed-forward of half 0      sum the product of half 1, and gather its next input
    feed-forward of half 1      ...
    attention of half 0, next block

A product is not summed in the part of the block that makes it. Its summands, one on each chip of a
model group, are handed on to the next part, also from block to block. The compiler would choose
another order; `jax.lax.optimization_barrier` prescribes this one. It joins the gathered input of
one half with the summands of the other. So the next product can begin when the sum begins. The
transpose of a barrier is a barrier: the backward pass has the same order, reversed.

Each chip has rows of both halves. The sums and the results are those of `Block`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from flamingo_jax.core import axes
from flamingo_jax.core.notation import Array, Bool, Float
from flamingo_jax.core.stack import BETWEEN
from flamingo_jax.models.block import Block, residual
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.models.self_attention import Context

_SAVED_AS = {"attention": "attended", "mlp": BETWEEN}  # the residual stream after each part


class Halves(NamedTuple):
    """The residual stream of a batch between two blocks.

    Attributes:
        x: of each half, [B/2, T, D].
        last: the summands [n, B/2, T, D] of the last product of the second half, which is not in
            its x; None before a block.
    """

    x: tuple[Array, Array]
    last: Array | None = None


def are_possible(config: LMConfig, x: Float[Array, "B T D"], cache: Any) -> bool:
    """Returns True if the layout has halves for these rows, and blocks of this config take them.

    A block with a norm after its products, with adapters or with its parts in parallel does not,
    and no block does with a cache.
    """
    simple = config.norm_place == "before" and not config.parallel_residual and config.lora is None
    return simple and cache is None and axes.has_halves(len(x))


def split(x: Float[Array, "B T D"]) -> Halves:
    """Returns the halves of a batch."""
    first, second = _halves_of(x)
    return Halves((first, second))


def join(halves: Halves) -> Float[Array, "B T D"]:
    """Returns the batch of its halves; inverse of `split`."""
    first, second = halves.x
    if halves.last is not None:
        second = _added(second, halves.last, "mlp")
    x = jnp.stack((first, second), axis=1)
    return residual(x.reshape(-1, *x.shape[2:]))


def in_turn(
    block: Block, halves: Halves, context: Context, is_global: Bool[Array, ""] | None
) -> Halves:
    """Applies a block to both halves; other arguments as of `Block`."""
    x, parts, of = list(halves.x), halves.last, "mlp"
    contexts = _halves_of(context)
    with axes.in_turn():
        for part in ("attention", "mlp"):
            for own, other in ((0, 1), (1, 0)):
                copies = axes.gathered(block.before(residual(x[own]), part))
                if parts is not None:
                    copies, parts = jax.lax.optimization_barrier((copies, parts))
                    x[other] = _added(x[other], parts, of)
                if part == "attention":
                    parts, _ = block.attention(copies, contexts[own], None, is_global)
                else:
                    parts = block.feed_forward(copies)
                of = part
    return Halves((x[0], x[1]), parts)


def _added(x: Array, product: Array, part: str) -> Array:
    """Returns x + the sum of a part's product, which is in summands."""
    return checkpoint_name(residual(x + axes.summed(product)), _SAVED_AS[part])


def _halves_of(tree: Any) -> tuple[Any, Any]:
    """Returns rows 0, 2, ... and rows 1, 3, ... of each array: each chip has rows of both."""

    def rows(leaf: Any, half: int) -> Any:
        if not isinstance(leaf, Array):
            return leaf
        # A slice with steps would not stay on its chip.
        return leaf.reshape(-1, 2, *leaf.shape[1:])[:, half]

    first, second = (jax.tree.map(lambda leaf, h=h: rows(leaf, h), tree) for h in range(2))
    return first, second
