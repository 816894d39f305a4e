"""Positions of tokens (rotary, relative, ALiBi, causal convolution) and of a video's frames.

    rotary      q, k [B T H K]   -> rotated by angles that grow with the position
    relative    q . r[distance]  -> added to the scores [B H T S]    (Transformer-XL)
    ALiBi       -slope*distance  -> added to the scores [B H T S]
    frames      table [8 E]      -> interpolated to [F E]    (paper, B.1.2: 8 to 30 frames)

Angles, scores and slopes are float32.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core import ranges
from flamingo_jax.core.notation import Array, Float, Float32, Int
from flamingo_jax.nn.linear import einsum_float32


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How rotary positions are stretched for longer texts than a model was first trained on.

    Attributes:
        factor: all wave lengths are multiplied by this; 1 = unchanged.
        low: with `original_length` (Llama 3.1): waves with fewer turns than this in
            `original_length` tokens are stretched.
        high: waves with more turns than this are not stretched, and waves between in part.
        original_length: tokens; 0 stretches all waves alike ("linear").
    """

    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 0

    def __post_init__(self) -> None:
        ranges.check(self, ranges.POSITIVE, "factor", "low", "high")
        ranges.check(self, ranges.whole(0), "original_length")
        if self.original_length and not self.low < self.high:
            raise ValueError(f"Expected 0 < low < high, got {self}.")

    def scale(self, frequencies: np.ndarray) -> np.ndarray:
        """Returns the frequencies (radians per token), stretched."""
        if not self.original_length:
            return frequencies / self.factor
        turns = frequencies * self.original_length / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary_frequencies(
    head_size: int,
    *,
    base: float = 10_000.0,
    fraction: float = 1.0,
    scaling: RotaryScaling = RotaryScaling(),
) -> Float32[Array, "n"]:
    """Returns the angles by which the pairs of features turn from one position to the next.

    Of the first 2n = fraction * K features, pair i turns by base^(-i/n) (Su et al. 2021).

    Args:
        head_size: K.
        base: the longest wave length is 2 pi times this.
        fraction: share of the features that are rotated (GPT-NeoX: 0.25).
        scaling: of the frequencies.
    """
    half = int(head_size * fraction) // 2
    return jnp.asarray(scaling.scale(base ** -(np.arange(half) / half)), jnp.float32)


def rotary(
    x: Float[Array, "B T H K"],
    positions: Int[Array, "B T"],
    frequencies: Float32[Array, "n"],
) -> Float[Array, "B T H K"]:
    """Rotates each pair of features by an angle that grows with the position (Su et al. 2021).

    Of the first 2n features, pair (i, i + n) turns by position * frequency i. The others stay.

    Args:
        x: queries or keys.
        positions: of each token.
        frequencies: from `rotary_frequencies`.
    """
    half = len(frequencies)
    size = 2 * half
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = (x[..., part].astype(jnp.float32) for part in (slice(0, half), slice(half, size)))
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., size:]], axis=-1)


def sinusoids(num_distances: int, width: int) -> Float32[Array, "S D"]:
    """Returns sines, then cosines, of the distances 0..num_distances-1 (Dai et al. 2019)."""
    frequencies = 10_000.0 ** -(np.arange(0, width, 2) / width)
    angles = np.arange(num_distances)[:, None] * frequencies[None, :]
    return jnp.asarray(
        np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :width], jnp.float32
    )


def relative_bias(
    q: Float[Array, "B T H K"], r: Float[Array, "S H K"], distances: Int[Array, "B T S"]
) -> Float32[Array, "B H T S"]:
    """Returns q . r[distance] / sqrt(K), the position part of Transformer-XL's scores.

    Source: Dai et al. 2019, 3.3.

    Args:
        q: queries, with the position bias added.
        r: projected embedding of each distance 0..S-1.
        distances: position of the query minus position of the key; below 0 (the future, which is
            masked) it counts as 0.
    """
    scores = einsum_float32("bthk,shk->bhts", q, r) * q.shape[-1] ** -0.5
    index = jnp.broadcast_to(jnp.clip(distances, 0, r.shape[0] - 1)[:, None], scores.shape)
    return jnp.take_along_axis(scores, index, axis=-1)


def aligned_relative_bias(
    q: Float[Array, "B L H K"], r: Float[Array, "L H K"]
) -> Float32[Array, "B H L L"]:
    """Returns `relative_bias` for queries and keys at the same positions, without a gather.

    The distance of query i and key j is i - j, so row i of the scores by distance is shifted by i:
    a zero is put before each row of L, and the array is cut into rows of L again (Dai et al. 2019,
    appendix B). Above the diagonal the result is meaningless: this is the future, which is masked.
    On a TPU the zeros come from the product, as scores of an embedding that is zero: to pad the
    scores would copy them, and their gradient.

    Args:
        q: queries, with the position bias added.
        r: projected embedding of each distance 0..L-1.
    """
    backwards = r[::-1]
    if axes_lib.on_tpu():
        backwards = jnp.concatenate([jnp.zeros_like(r[:1]), backwards])
    scores = einsum_float32("blhk,shk->bhls", q, backwards) * q.shape[-1] ** -0.5
    batch, heads, length, width = scores.shape
    if width == length:
        scores = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return scores.reshape(batch, heads, length + 1, length)[:, :, 1:]


def alibi_bias(num_heads: int, distances: Int[Array, "B T S"]) -> Float32[Array, "B H T S"]:
    """Returns -slope * distance, with slope 2^(-8 h / H) for head h = 1..H (Press et al. 2021)."""
    slopes = jnp.asarray(alibi_slopes(num_heads), jnp.float32)
    return -slopes[None, :, None, None] * distances[:, None].astype(jnp.float32)


def alibi_slopes(num_heads: int) -> list[float]:
    """Returns the slope of each head.

    If H is no power of two, the slopes are every second one of the next power of two, as in MPT.
    """
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    return slopes if power == num_heads else (slopes[1::2] + slopes[0::2])[:num_heads]


def interpolate_time(table: Float[Array, "n W"], num_frames: int) -> Float[Array, "F W"]:
    """Interpolates the n learnt time embeddings linearly (paper, B.1.2: from 8 to 30 frames).

    The first and the last embedding stay at the ends. Up to n frames take the first rows as they
    are: an image (one frame) has the first embedding.
    """
    num_embeddings = table.shape[0]
    if num_frames <= num_embeddings:
        return table[:num_frames]
    where = np.linspace(0.0, num_embeddings - 1, num_frames)
    left = np.minimum(where.astype(np.int32), num_embeddings - 2)
    share = jnp.asarray(where - left, table.dtype)[:, None]
    return table[left] * (1 - share) + table[left + 1] * share


def causal_convolution(
    x: Float[Array, "B L C"], kernel: Float[Array, "W C"], before: list[Array]
) -> Float[Array, "B L C"]:
    """Returns sum_i kernel[i] * (x, i tokens ago), for each channel (Primer, So et al. 2021).

    Args:
        x: the sequence.
        kernel: one weight for each lag and channel.
        before: W - 1 arrays like x: the sequence 1, 2, ... tokens ago, 0 before its start.
    """
    lags = [x, *before]
    return sum(
        (lag * jnp.broadcast_to(kernel[i].astype(x.dtype), x.shape) for i, lag in enumerate(lags)),
        jnp.zeros_like(x),
    )


def shifted(
    x: Float[Array, "B L C"], lag: int, segment: Int[Array, "B L"] | None
) -> Float[Array, "B L C"]:
    """Returns x, `lag` tokens ago; 0 before the start of a row and of a packed document."""
    moved = jnp.pad(x, ((0, 0), (lag, 0), (0, 0)))[:, : x.shape[1]]
    if segment is None:
        return moved
    origin = jnp.pad(segment, ((0, 0), (lag, 0)))[:, : x.shape[1]]
    return jax.lax.select(
        jnp.broadcast_to((origin == segment)[:, :, None], x.shape), moved, jnp.zeros_like(x)
    )
