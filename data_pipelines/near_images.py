"""Finds nearly equal images by a perceptual hash, or by their embeddings.

    phash       image --> 32 x 32 grey --> cosine transform --> signs of its 8 x 8 lowest
                frequencies: 64 bits. The distance is the number of bits that differ.
    embeddings  cosine similarity of two rows. An approximate search (HNSW) finds candidates, and
                their similarities are then computed exactly.

A copy that was resized or encoded again differs in a few bits (of 100 copies made for the tests, in
at most 4). A copy that lost 2, 5 or 10 percent of its sides differs in 2, 4 or 8 on average.
Unrelated images differ in half of the bits, plus or minus 4. The hash of a mirrored copy is the
hash of another image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from flamingo_jax.data.images import read

BITS = 64
_SIDE = 128  # images are decoded at this size, four times the size that is hashed
_FLAT = 2.0  # standard deviation of grey levels (of 255) below which signs of frequencies are noise
# Of the HNSW graph: links per node, and candidates kept during a search.
_LINKS, _BREADTH = 32, 256
_NEIGHBOURS = 8  # nearest images that are compared with each image


def phash(encoded: bytes) -> np.ndarray | None:
    """Returns the perceptual hash of an image, uint8[8].

    None for an image of (almost) a single colour, which has no hash.

    Raises:
      CorruptRecord: it cannot be decoded.
    """
    import imagehash

    pixels = read.decode_inner(encoded, _SIDE)
    grey = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    if np.asarray(grey).std() < _FLAT:
        return None
    return np.packbits(imagehash.phash(grey).hash.reshape(-1))


class HashIndex:
    """Hashes that a query is compared with, one by one.

    Args:
      hashes: uint8[n, 8].
    """

    def __init__(self, hashes: np.ndarray):
        import faiss

        self._index = faiss.IndexBinaryFlat(BITS)
        self._index.add(np.ascontiguousarray(hashes))

    def search(self, queries: np.ndarray, max_distance: int) -> Iterator[tuple[int, int, int]]:
        """Yields (query, row of the index, distance) of all close pairs.

        Args:
          queries: uint8[q, 8].
          max_distance: largest distance of a pair, in bits.
        """
        if not len(queries):
            return
        ends, distances, rows = self._index.range_search(
            np.ascontiguousarray(queries), max_distance + 1
        )
        for query in range(len(queries)):
            for place in range(int(ends[query]), int(ends[query + 1])):
                yield query, int(rows[place]), int(distances[place])


class EmbeddingIndex:
    """Embeddings that a query is compared with, in a graph (HNSW).

    The time of a query grows with the logarithm of their number.

    Args:
      width: E.
    """

    def __init__(self, width: int):
        import faiss

        # The nearest vectors of length 1 are those with the largest cosine.
        self._index: Any = faiss.IndexHNSWFlat(width, _LINKS)
        self._index.hnsw.efSearch = _BREADTH

    def add(self, rows: np.ndarray) -> None:
        """Adds float32[n, E]."""
        self._index.add(_unit(rows))

    def search(self, queries: np.ndarray, min_cosine: float) -> Iterator[tuple[int, int, float]]:
        """Yields (query, row of the index, cosine) of all similar pairs among the nearest rows.

        Args:
          queries: float32[q, E].
          min_cosine: smallest cosine similarity of a pair.
        """
        unit = _unit(queries)
        count = min(_NEIGHBOURS, self._index.ntotal)
        if not len(unit) or not count:
            return
        _, rows = self._index.search(unit, count)
        found = np.stack(
            [self._index.reconstruct_batch(rows[:, place].clip(0)) for place in range(count)],
            axis=1,
        )
        cosines = np.einsum("qe,qne->qn", unit, found)
        for query, place in zip(*np.nonzero((cosines >= min_cosine) & (rows >= 0)), strict=True):
            yield int(query), int(rows[query, place]), float(cosines[query, place])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Scales rows to length 1, float32[n, E]. A row of zeros stays zero, similar to no row."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(length == 0, 1, length), np.float32)


@functools.cache
def one_thread() -> None:
    """Limits faiss to one core in this process, since the workers share the cores."""
    import faiss

    faiss.omp_set_num_threads(1)
