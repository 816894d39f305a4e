"""Two halves of the rows go through the LM's blocks in turn: one is sent while one is computed.

    a chip computes           meanwhile its links
    attention of half 0       sum feed-forward of half 1, gather its input of attention
    attention of half 1       sum attention of half 0, gather its input of feed-forward
    feed-forward of half 0    sum attention of half 1, gather its input of feed-forward
    feed-forward of half 1    sum feed-forward of half 0, gather its input of the next attention

The chips of a model group each have a summand of a product (`sharding.exchange`). The part of a
block that makes the summands does not add them: the next part does, also from block to block. A
barrier (`jax.lax.optimization_barrier`) makes this order. It joins the gathered input of one half
with the summands of the other, so that the sum starts when the next product can start. The
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
            its x; None before the first block of a group.
    """

    x: tuple[Array, Array]
    last: Array | None = None


def are_possible(config: LMConfig, x: Float[Array, "B T D"], cache: Any) -> bool:
    """Returns True if these rows can go through the blocks as two halves.

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


def apply(
    block: Block, halves: Halves, context: Context, is_global: Bool[Array, ""] | None
) -> Halves:
    """Applies a block to both halves; other arguments as of `Block`."""
    x, summands, made_by = list(halves.x), halves.last, "mlp"
    contexts = _halves_of(context)
    with axes.for_halves():
        for part in ("attention", "mlp"):
            for own, other in ((0, 1), (1, 0)):
                copies = axes.gathered(block.before(residual(x[own]), part))
                if summands is not None:
                    copies, summands = jax.lax.optimization_barrier((copies, summands))
                    x[other] = _added(x[other], summands, made_by)
                if part == "attention":
                    summands, _ = block.attention(copies, contexts[own], None, is_global)
                else:
                    summands = block.feed_forward(copies)
                made_by = part
    return Halves((x[0], x[1]), summands)


def _added(x: Array, summands: Array, part: str) -> Array:
    """Returns x + what a part of a block computed."""
    return checkpoint_name(residual(x + axes.summed(summands)), _SAVED_AS[part])


def _halves_of(tree: Any) -> tuple[Any, Any]:
    """Returns rows 0, 2, ... and rows 1, 3, ... of each array: each chip has rows of both."""

    def rows(leaf: Any, half: int) -> Any:
        if not isinstance(leaf, Array):
            return leaf
        # A slice with steps would not stay on its chip.
        return leaf.reshape(-1, 2, *leaf.shape[1:])[:, half]

    first, second = (jax.tree.map(lambda leaf, h=h: rows(leaf, h), tree) for h in range(2))
    return first, second
