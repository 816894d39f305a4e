"""Finds nearly equal texts: MinHash (Broder 1997), in bands.

    text --> shingles of 5 words, hashed --> 128 minima --> 16 keys, each of a band of 8 minima
                                                       --> sketch: one byte of each minimum

The share of equal minima of two texts estimates the Jaccard similarity s of their sets of shingles.
Two texts share a band with probability 1 - (1 - s^8)^16:

    s             0.3     0.5     0.6     0.7     0.8     0.9
    share a band  0.001   0.06    0.24    0.61    0.95    0.9999

So a shared band only finds texts to compare. Their sketches decide: they are alike if the estimate
is at least 0.8, the similarity at which Gopher drops a text. Its standard deviation is 0.035 there.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHINGLE = 5  # words
BANDS, ROWS = 16, 8
ALIKE = 0.8  # estimated similarity at which two texts are nearly equal
KEY = "text_alike"  # name of the keys
_SEED = 13  # another seed changes every key, so keys of two runs are comparable with one seed only
_WORD = re.compile(r"\w+")


class Fingerprint(NamedTuple):
    """What a text is recognised by.

    Attributes:
      keys: BANDS keys, of which nearly equal texts share one or more; none for a text without
        words.
      sketch: BANDS * ROWS bytes, for `is_alike`.
    """

    keys: tuple[str, ...] = ()
    sketch: bytes = b""


def fingerprint(text: str) -> Fingerprint:
    """Returns the fingerprint of a text."""
    words = _words(text)
    if not words:
        return Fingerprint()
    minima = _minima(_shingles(words))
    keys = tuple(
        f"{KEY}:{band}:{_digest(rows.tobytes())}"
        for band, rows in enumerate(minima.reshape(BANDS, ROWS))
    )
    # The highest bits of a minimum are almost always 0. The lowest ones are uniform.
    return Fingerprint(keys, minima.astype(np.uint8).tobytes())


def is_alike(sketch: bytes, others: Sequence[bytes]) -> bool:
    """Returns True if a text is nearly equal to one of the others, by their sketches."""
    if not others:
        return False
    known = np.frombuffer(b"".join(others), np.uint8).reshape(len(others), -1)
    equal = (known == np.frombuffer(sketch, np.uint8)).mean(axis=1).max()
    by_chance = 1 / 256  # a byte of two different minima is equal
    return bool((equal - by_chance) / (1 - by_chance) >= ALIKE)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _shingles(words: Sequence[str]) -> np.ndarray:
    """Returns the hashes of the different runs of SHINGLE words, uint64[n].

    A shorter text is one shingle.
    """
    # crc32 is the same in every process, unlike hash(). 32 bits are enough for the words of a text.
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
    """Returns the smallest value of each hash function over all shingles, uint64[BANDS * ROWS]."""
    factors = _factors()
    minima = np.full(len(factors), np.iinfo(np.uint64).max, np.uint64)
    # Chunks fit in the cache, and the memory does not grow with the text.
    for start in range(0, len(shingles), 256):
        np.minimum(
            minima, (factors[:, None] * shingles[start : start + 256]).min(axis=1), out=minima
        )
    return minima


@functools.cache
def _factors() -> np.ndarray:
    """Returns the odd factors of the hash functions x -> factor * x mod 2^64, uint64[BANDS * ROWS].

    They hash numbers that are well mixed already.
    """
    return np.random.default_rng(_SEED).integers(0, 1 << 64, BANDS * ROWS, np.uint64) | np.uint64(1)


def _mix(value: np.ndarray) -> np.ndarray:
    """Mixes 64 bits: each bit of the result depends on all bits of the value.

    A bijection, the finaliser of MurmurHash3.
    """
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))
