"""Positions: rotary, relative (Transformer-XL), ALiBi for text.

Interpolated embeddings for the frames of a video.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core.notation import Array, Float, Float32, Int
from flamingo_jax.nn.linear import einsum_float32


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How rotary positions were stretched for longer texts than a model was first trained on.

    Attributes:
        factor: wave lengths become this many times as long; 1 is none.
        low, high: if `original_length` is given (Llama 3.1): waves that turn fewer than `low` times
        in it are stretched, those that turn more
            than `high` times are not, and those between in part.
        original_length: tokens; 0 stretches all waves alike ("linear").
    """

    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 0

    def __post_init__(self) -> None:
        if (
            self.factor <= 0
            or self.original_length < 0
            or (self.original_length and not 0 < self.low < self.high)
        ):
            raise ValueError(
                f"Expected factor > 0, original_length >= 0 and 0 < low < high, got {self}."
            )

    def scale(self, frequencies: np.ndarray) -> np.ndarray:
        """Returns the frequencies (radians per token), stretched."""
        if not self.original_length:
            return frequencies / self.factor
        turns = frequencies * self.original_length / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary(
    x: Float[Array, "B T H K"],
    positions: Int[Array, "B T"],
    *,
    base: float = 10_000.0,
    fraction: float = 1.0,
    scaling: RotaryScaling = RotaryScaling(),
) -> Float[Array, "B T H K"]:
    """Rotates pairs (i, i + n/2) of the first n = fraction * K features by position * base^(-2i/n) (Su et al. 2021).

    Args:
        x: queries or keys.
        positions: of each token.
        base: the longest wave length is 2 pi times this.
        fraction: share of the features that rotate (GPT-NeoX: 0.25); the others pass unchanged.
        scaling: of the frequencies.
    """
    size = int(x.shape[-1] * fraction)
    half = size // 2
    frequencies = jnp.asarray(scaling.scale(base ** -(np.arange(half) / half)), jnp.float32)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = (x[..., part].astype(jnp.float32) for part in (slice(0, half), slice(half, size)))
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., size:]], axis=-1)


def sinusoids(num_distances: int, width: int) -> Float32[Array, "S D"]:
    """Sinusoidal embedding of the distances 0..num_distances-1 (Dai et al. 2019).

    Sines, then cosines.
    """
    frequencies = 10_000.0 ** -(np.arange(0, width, 2) / width)
    angles = np.arange(num_distances)[:, None] * frequencies[None, :]
    return jnp.asarray(
        np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[:, :width], jnp.float32
    )


def relative_bias(
    q: Float[Array, "B T H K"], r: Float[Array, "S H K"], distances: Int[Array, "B T S"]
) -> Float32[Array, "B H T S"]:
    """The position part of Transformer-XL attention.

    Q . r[distance], scaled as the scores are (Dai et al. 2019, 3.3).

    Args:
        q: queries with their position bias v already added.
        r: projected embedding of each distance 0..S-1.
        distances: query position minus key position; below 0 (the future, masked anyway) counts as
            0.
    """
    scores = einsum_float32("bthk,shk->bhts", q, r) * q.shape[-1] ** -0.5
    index = jnp.broadcast_to(jnp.clip(distances, 0, r.shape[0] - 1)[:, None], scores.shape)
    return jnp.take_along_axis(scores, index, axis=-1)


def aligned_relative_bias(
    q: Float[Array, "B L H K"], r: Float[Array, "L H K"]
) -> Float32[Array, "B H L L"]:
    """`relative_bias` where query i stands at key i.

    Distances are i - j, and no gather is needed (Dai et al. 2019, appendix B).

    Scores by distance are shifted, row i by i: one zero put before each row of L and the whole cut
    into rows of L again. What the shift brings in above the diagonal belongs to the future, which
    is masked.

    Args:
        q: queries with their position bias v already added.
        r: projected embedding of each distance 0..L-1.
    """
    scores = einsum_float32("blhk,shk->bhls", q, r[::-1]) * q.shape[-1] ** -0.5
    batch, heads, length, _ = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return padded.reshape(batch, heads, length + 1, length)[:, :, 1:]


def alibi_bias(num_heads: int, distances: Int[Array, "B T S"]) -> Float32[Array, "B H T S"]:
    """-slope * distance, with slopes 2^(-8 h / H) for h = 1..H (Press et al. 2021).

    H need not be a power of two.
    """
    return -jnp.asarray(alibi_slopes(num_heads), jnp.float32)[None, :, None, None] * distances[
        :, None
    ].astype(jnp.float32)


def alibi_slopes(num_heads: int) -> list[float]:
    """The slope of each head.

    Beyond the largest power of two, every second slope of the next one (as MPT does).
    """
    power = 2 ** math.ceil(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * h / power) for h in range(1, power + 1)]
    return slopes if power == num_heads else (slopes[1::2] + slopes[0::2])[:num_heads]


def interpolate_time(table: Float[Array, "T E"], num_frames: int) -> Float[Array, "F E"]:
    """Linearly interpolates the T learnt time embeddings to `num_frames`.

    The paper goes from 8 frames to 30 (B.1.2).

    The first and last embeddings stay at the ends. Up to T frames keep their own rows, so that an
    image (one frame) has the first embedding, and a video shorter than in training the first ones.
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
    """Depthwise causal convolution: sum_i kernel[i] * (x, i tokens ago) (Primer, So et al. 2021).

    Args:
        x: the sequence, 0 tokens ago.
        kernel: one weight per channel and lag.
        before: W - 1 arrays like x: the sequence 1, 2, ... tokens ago (zeros where there is none).
    """
    lags = [x, *before]
    return sum(
        (lag * jnp.broadcast_to(kernel[i].astype(x.dtype), x.shape) for i, lag in enumerate(lags)),
        jnp.zeros_like(x),
    )


def shifted(
    x: Float[Array, "B L C"], lag: int, segment: Int[Array, "B L"] | None
) -> Float[Array, "B L C"]:
    """x, `lag` tokens ago; 0 before the start and across the border of packed documents."""
    moved = jnp.pad(x, ((0, 0), (lag, 0), (0, 0)))[:, : x.shape[1]]
    if segment is None:
        return moved
    origin = jnp.pad(segment, ((0, 0), (lag, 0)))[:, : x.shape[1]]
    return jax.lax.select(
        jnp.broadcast_to((origin == segment)[:, :, None], x.shape), moved, jnp.zeros_like(x)
    )
