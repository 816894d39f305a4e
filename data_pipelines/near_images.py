"""Images that are nearly the same: by a perceptual hash, or by their embeddings.

phash       image --> 32 x 32 grey --> cosine transform --> signs of its 8 x 8 lowest frequencies: 64 bits; the distance is the number of bits that differ
embeddings  cosine similarity of two rows; candidates by an approximate search (HNSW), whose
similarities are then computed exactly

A copy that was resized or encoded again differs in a few bits (of 100 made for the tests, at most
4), one that lost 2, 5 or 10 percent of its sides in 2, 4 or 8 on average; unrelated images differ
in half of them, give or take 4. A mirrored copy is another image to the hash.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from flamingo_jax.data.images import read

BITS = 64
_SIDE = 128  # images are decoded at this size: four times what the hash looks at
_FLAT = 2.0  # standard deviation of grey levels (of 255) below which signs of frequencies are noise
# of the HNSW graph: links of a node, and candidates kept while searching
_LINKS, _BREADTH = 32, 256
_NEIGHBOURS = 8  # of one image that are looked at


def phash(encoded: bytes) -> np.ndarray | None:
    """Returns the perceptual hash of an image, uint8[8].

    None for one of (almost) a single colour, which has none.

    Raises:
      CorruptRecord: it cannot be decoded.
    """
    import imagehash

    info = read.probe(encoded)
    square = read.decode(encoded, _SIDE)
    scale = _SIDE / max(info.width, info.height)
    width, height = (max(1, round(side * scale)) for side in (info.width, info.height))
    top, left = (_SIDE - height) // 2, (_SIDE - width) // 2
    grey = Image.fromarray(square[top : top + height, left : left + width]).convert("L")
    if np.asarray(grey).std() < _FLAT:
        return None
    return np.packbits(imagehash.phash(grey).hash.reshape(-1))


class HashIndex:
    """Hashes to compare with, all of them for each query.

    Args:
      hashes: uint8[n, 8].
    """

    def __init__(self, hashes: np.ndarray):
        import faiss

        self._index = faiss.IndexBinaryFlat(BITS)
        self._index.add(np.ascontiguousarray(hashes))

    def search(self, queries: np.ndarray, max_distance: int) -> Iterator[tuple[int, int, int]]:
        """Yields (query, row of the index, distance) of all pairs at most `max_distance` bits apart.

        Args:
          queries: uint8[q, 8].
          max_distance: bits.
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
    """Embeddings to compare with, in a graph that a query walks (HNSW).

    Its time grows with the logarithm of their number.

    Args:
      width: E.
    """

    def __init__(self, width: int):
        import faiss

        # Of vectors of length 1, the nearest are those with the largest cosine.
        self._index: Any = faiss.IndexHNSWFlat(width, _LINKS)
        self._index.hnsw.efSearch = _BREADTH

    def add(self, rows: np.ndarray) -> None:
        """Adds float32[n, E]."""
        self._index.add(_unit(rows))

    def search(self, queries: np.ndarray, min_cosine: float) -> Iterator[tuple[int, int, float]]:
        """Yields (query, row of the index, cosine) of pairs with at least `min_cosine`, of the nearest rows of each query.

        Args:
          queries: float32[q, E].
          min_cosine: cosine similarity.
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
    """Rows of length 1, float32[n, E]; a row of zeros stays one and is like nothing."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(length == 0, 1, length), np.float32)


@functools.cache
def one_thread() -> None:
    """Keeps faiss to one core in this process, once: workers share the cores among themselves."""
    import faiss

    faiss.omp_set_num_threads(1)
