"""The visual inputs that all cross-attention layers share, and which of them a token attends.

attend    text  tag  tag  text  tag  text
phi       0     1    2    2     3    3
last      -     1    2    2     3    3        the paper's: one image (2.3)
run       -     1    1,2  1,2   3    3        Llama 3.2: images side by side are seen together
all       -     1    1,2  1,2   1-3  1-3      Table 10, row ii
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core.axes import constrain
from flamingo_jax.core.notation import Array, Bool, Float, Int

Attends = Literal["last", "all", "run"]
"""The images that a token attends, as in the table above."""


class MediaContext(NamedTuple):
    """The visual inputs that all cross-attention layers share.

    Attributes:
        media_index: phi of each token.
        pool: latents of all visual inputs, from `gated_xattn.as_layers_take`; None in decoding,
            which has cached keys and values.
        slot: rows of the pool that each sequence uses, as in `data.schema.Batch`; None in decoding.
            N = 0 for text that has no images at all: then there is no pool either.
        num_shards: data shards, each with its part of the pool.
        chunk: (tokens, span) of the chunked attention; None = the full form.
        keep: whether layers return the keys and values of each sequence's images: of the last one,
            or of all if tokens attend several.
        first: number of the first image that each token attends, if it attends a run
            (`first_images`).
        real: False for latents of each sequence's images that are padding; None = there is none.
    """

    media_index: Int[Array, "B T"]
    pool: Float[Array, "M R W"] | None = None
    slot: Int[Array, "B N"] | None = None
    num_shards: int = 1
    chunk: tuple[int, int] | None = None
    keep: bool = False
    first: Int[Array, "B T"] | None = None
    real: Bool[Array, "B N R"] | None = None

    @property
    def is_empty(self) -> bool:
        """True if no sequence has a visual input: attention would add exactly 0."""
        return self.slot is not None and self.slot.shape[1] == 0


T = TypeVar("T", jax.Array, np.ndarray)


def first_images(media_index: T, segment: T | None = None) -> T:
    """Returns the number of the first image of the run that image phi is in.

    A run is images whose tags, of one token each, follow one another.

    Args:
        media_index: int[B, T] phi, which grows by one at each tag; of numpy or of JAX.
        segment: int[B, T] document of each token; a run ends with it. None = there is one.

    Returns:
        int[B, T] the numbers, from 1; of no meaning where phi = 0.
    """
    is_numpy = isinstance(media_index, np.ndarray)
    xp: Any = np if is_numpy else jnp
    running_maximum: Any = np.maximum.accumulate if is_numpy else jax.lax.cummax

    def before(x: Any) -> Any:
        return xp.pad(x, ((0, 0), (1, 0)))[:, :-1]

    is_tag = (media_index > 0) & (media_index != before(media_index))
    goes_on = is_tag & before(is_tag) & (media_index == before(media_index) + 1)
    if segment is not None:
        goes_on &= before(segment) == segment
    found: T = running_maximum(xp.where(is_tag & ~goes_on, media_index, 0), axis=1)
    return found


def seen_at_the_end(
    media_index: Int[Array, "B T"],
    first: Int[Array, "B T"],
    real: Bool[Array, "B N R"] | None,
    shape: tuple[int, ...],
) -> Bool[Array, "B N R"]:
    """Returns the latents that the next token attends: the real ones of the last run.

    Args:
        media_index: phi of the tokens before.
        first: of them, from `first_images`.
        real: as in `MediaContext`.
        shape: (B, N, R).
    """
    numbers = jnp.arange(1, shape[1] + 1, dtype=media_index.dtype)[None]
    start, end = (jnp.max(x, axis=1)[:, None] for x in (first, media_index))
    seen = ((numbers >= start) & (numbers <= end))[:, :, None]
    return jnp.broadcast_to(seen, shape) if real is None else seen & real


def real_latents(
    pool: Float[Array, "M R W"], slot: Int[Array, "B N"], num_shards: int
) -> Bool[Array, "B N R"]:
    """Returns which latents of each sequence's images are real: those that are not exactly 0."""
    own = gather_media(jnp.any(pool != 0, axis=-1)[:, :, None, None], slot, num_shards, None)
    return own[..., 0, 0] & (slot >= 0)[:, :, None]


def gather_media(
    pool: Float[Array, "M R H K"] | Bool[Array, "M R H K"],
    slot: Int[Array, "B N"],
    num_shards: int,
    heads: str | None = "heads",
) -> Float[Array, "B N R H K"] | Bool[Array, "B N R H K"]:
    """Returns each sequence's visual inputs: rows `slot` of the pool of its data shard.

    Args:
        pool: the pools of all shards, M / num_shards rows each.
        slot: row within the shard's pool; -1 (no visual input) reads row 0, which no token attends.
        num_shards: number of data shards that batch and pool are split into.
        heads: logical axis of the heads.
    """
    inner = ("latents", heads, "head_dim")
    pools = pool.reshape(num_shards, -1, *pool.shape[1:])
    pools = constrain(pools, "batch", None, *inner)
    slots = jnp.maximum(slot, 0).reshape(num_shards, -1, slot.shape[1])
    out = jax.vmap(lambda rows, index: rows[index])(pools, slots)
    out = constrain(out, "batch", None, None, *inner)
    return constrain(out.reshape(*slot.shape, *pool.shape[1:]), "batch", None, *inner)
