"""Softmax attention, and cross-attention to one image per token, as pure functions.

    q [B L H K]   k, v [B S G K]   mask [B L S]
           |            |               |
           +-- softmax(q k^T / sqrt(K) + bias, over the S that mask allows) v --> [B L H K]

Scores and softmax are float32. A query that may attend no key gets exactly 0, not the mean of all
values: a text token before the first image must not depend on any image (paper, A.1.3: phi = 0).

On NVIDIA GPUs cuDNN's kernel computes the same where it can (nn/fused_attention.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core.notation import Array, Bool, Float, Float32, Int
from flamingo_jax.nn import fused_attention
from flamingo_jax.nn.linear import einsum_float32

_MASKED = -1e30  # finite: a row of -inf would give NaN in the softmax


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    mask: Bool[Array, "B L S"] | None = None,
    bias: Float32[Array, "#B H L S"] | None = None,
    *,
    cap: float = 0.0,
) -> Float[Array, "B L H K"]:
    """Returns softmax(q k^T / sqrt(K) + bias) v; H / G query heads share a key/value head.

    Args:
        q: queries.
        k: keys; G divides H.
        v: values.
        mask: True where a query may attend a key; None = everywhere.
        bias: added to the scaled scores (relative positions, ALiBi).
        cap: the scaled scores s become cap * tanh(s / cap), before the bias (Gemma 2); 0 = they
            stay.

    Returns:
        The attended values in the dtype of v; exactly 0 for a query without an allowed key.
    """
    if (
        not cap
        and fused_attention.fits(q, k, v, mask, bias)
        and fused_attention.has_kernel(axes_lib.device())
    ):
        return fused_attention.attend_fused(q, k, v, mask, bias)
    return _attend(q, k, v, mask, bias, cap)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    bias: Array | None = None,
    cap: float = 0.0,
) -> Array:
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    grouped = q.reshape(batch, length, groups, heads // groups, size)
    scores = capped(einsum_float32("blghk,bsgk->bghls", grouped, k) * size**-0.5, cap)
    if bias is not None:
        by_group = bias.reshape(-1, groups, heads // groups, *bias.shape[2:])
        scores = scores + jnp.broadcast_to(by_group, scores.shape)
    if mask is not None:
        visible = mask[:, None, None]
        scores = jnp.where(visible, scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        weights = jnp.where(visible, weights, 0.0)
    out = jnp.einsum("bghls,bsgk->blghk", weights.astype(v.dtype), v)
    return out.reshape(batch, length, heads, size)


def capped(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """Returns cap * tanh(x / cap), which stays between -cap and cap; x itself if the cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def attend_own_image(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B N R G K"],
    v: Float[Array, "B N R G K"],
    media_index: Int[Array, "B L"],
    average: Bool[Array, "B N"] | None = None,
    *,
    first: Int[Array, "B L"] | None = None,
    real: Bool[Array, "B N R"] | None = None,
) -> Float[Array, "B L H K"]:
    """Masked cross-attention: token l attends the R latents of image phi(l) alone (paper, A.1.3).

    This is the full form. It scores all images and masks all but one, at a cost of L * N * R.
    `attend_own_image_chunked` gives the same at a cost of L * span * R.

    Args:
        q: queries of the text.
        k: keys of each image's latents; G divides H.
        v: values of each image's latents.
        media_index: phi; 1..N, or 0 for a token that attends no image and gets exactly 0.
        average: images for tokens with phi = 0, which get the mean over all latents of these images
            instead of 0, whatever the query. Not in the paper; the first IDEFICS has it.
        first: the token attends the images from this number to phi; None = image phi alone.
        real: False for latents that are padding, which no token attends; None = there is none.
    """
    batch, num_images, num_latents, heads, size = k.shape
    numbers = jnp.arange(1, num_images + 1, dtype=media_index.dtype)[None, None, :]
    phi = media_index[:, :, None]
    own = numbers == phi if first is None else (numbers >= first[:, :, None]) & (numbers <= phi)
    if average is not None:
        unseen = media_index == 0
        own = own | (unseen[:, :, None] & average[:, None, :])
        q = jnp.where(unseen[:, :, None, None], 0, q)  # equal scores
    flat = (batch, num_images * num_latents, heads, size)
    mask = jnp.repeat(own, num_latents, axis=-1)
    if real is not None:
        mask = mask & real.reshape(batch, 1, -1)
    return attend(q, k.reshape(flat), v.reshape(flat), mask)


def attend_own_image_chunked(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B N R G K"],
    v: Float[Array, "B N R G K"],
    media_index: Int[Array, "B L"],
    *,
    chunk: int,
    span: int,
    first: Int[Array, "B L"] | None = None,
    real: Bool[Array, "B N R"] | None = None,
) -> Float[Array, "B L H K"]:
    """Computes `attend_own_image` at a cost that does not grow with the number of images.

    phi is constant over the text of one image, so that a chunk of consecutive tokens attends few
    images. Each chunk attends a window of `span` images that starts at its smallest phi. The
    paper's first version (3.1.3) names this saving and does not build it.

    Args:
        q: queries of the text.
        k: keys of each image's latents.
        v: values of each image's latents.
        media_index: phi.
        chunk: consecutive tokens that are computed together; divides L.
        span: images of the window; at least the largest (max phi - min phi over phi > 0) + 1 of a
            chunk, which `inference.padding.xattn_chunk` computes on the host. With `first`, the
            smallest `first` takes the place of the smallest phi.
        first: as in `attend_own_image`.
        real: as in `attend_own_image`.

    Raises:
        ValueError: `chunk` does not divide L.
    """
    batch, length, heads, size = q.shape
    _, num_images, num_latents = k.shape[:3]
    if length % chunk:
        raise ValueError(
            f"Chunked cross-attention: {chunk} tokens per chunk do not divide {length} tokens."
        )
    span = min(span, num_images)
    num_chunks = length // chunk
    phi = media_index.reshape(batch, num_chunks, chunk)
    lowest = phi if first is None else first.reshape(phi.shape)
    start = jnp.min(jnp.where(phi > 0, lowest, num_images), axis=-1)  # 1-based
    start = jnp.clip(start - 1, 0, num_images - span)  # [B, chunks], 0-based
    window = start[:, :, None] + jnp.arange(span)[None, None, :]

    def gather(x: Array) -> Array:
        picked = jax.vmap(lambda row, index: row[index])(x, window)  # [B, chunks, span, R, ...]
        return picked.reshape(batch * num_chunks, span, num_latents, *x.shape[3:])

    def local(numbers: Array) -> Array:
        own = jnp.where(phi > 0, numbers.reshape(phi.shape) - start[:, :, None], 0)
        return own.reshape(batch * num_chunks, chunk)

    out = attend_own_image(
        q.reshape(batch * num_chunks, chunk, heads, size),
        gather(k),
        gather(v),
        local(phi),
        first=None if first is None else local(first),
        real=None if real is None else gather(real),
    )
    return out.reshape(batch, length, heads, size)
