"""Keys for `collect.Found` under which texts that are nearly the same meet.

MinHash (Broder 1997), in bands.

The share of equal minima of two texts' hashed shingles estimates their Jaccard similarity s. With
16 bands of 8 minima each, texts share a band with probability 1 - (1 - s^8)^16:

    s             0.3     0.5     0.6     0.7     0.8     0.9
    share a band  0.001   0.06    0.24    0.61    0.95    0.9999

A shared band drops the later text without a closer look, so the row also says how often a text goes
that is merely alike. Gopher drops at similarity 0.8; our shingles are 5 words.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np

SHINGLE = 5  # words
BANDS, ROWS = 16, 8
_SEED = 13  # changes every band key: keys of two runs compare only under one seed
_WORD = re.compile(r"\w+")


def band_keys(text: str) -> tuple[str, ...]:
    """Returns the BANDS keys of a text; texts that are nearly the same share one or more.

    A text without words has none.
    """
    words = _words(text)
    if not words:
        return ()
    minima = _minima(_shingles(words))
    return tuple(
        f"text_alike:{band}:{_digest(rows.tobytes())}"
        for band, rows in enumerate(minima.reshape(BANDS, ROWS))
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _shingles(words: Sequence[str]) -> np.ndarray:
    """uint64[n] hashes of the n different runs of SHINGLE words.

    Of all words at once if they are fewer.
    """
    # crc32: the same in every process, unlike hash(); 32 bits are enough for the words of one text.
    hashes = np.fromiter(
        (zlib.crc32(word.encode(errors="surrogatepass")) for word in words), np.uint64, len(words)
    )
    size = min(SHINGLE, len(words))
    count = len(words) - size + 1
    total = np.zeros(count, np.uint64)
    for offset in range(size):
        total = _mix(total + hashes[offset : offset + count])
    return np.unique(total)


def _minima(shingles: np.ndarray) -> np.ndarray:
    """uint64[BANDS * ROWS] the least value of each hash function over all shingles."""
    factors = _factors()
    minima = np.full(len(factors), np.iinfo(np.uint64).max, np.uint64)
    # stays in the cache, and memory does not grow with the text
    for start in range(0, len(shingles), 256):
        np.minimum(
            minima, (factors[:, None] * shingles[start : start + 256]).min(axis=1), out=minima
        )
    return minima


@functools.cache
def _factors() -> np.ndarray:
    """The hash functions x -> factor * x mod 2^64 of numbers that are well mixed already.

    Odd uint64[BANDS * ROWS].
    """
    return np.random.default_rng(_SEED).integers(0, 1 << 64, BANDS * ROWS, np.uint64) | np.uint64(1)


def _mix(value: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits in which each bit of the result depends on all bits of the value (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))
