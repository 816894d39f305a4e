"""How far down a list sorted by cosine the first right entry stands.

What recall at k and the accuracy of a classification rest on.

    queries [q J], gallery [g J]    of length 1
    groups  int[q], int[g]          a query's right entries are those of its group: an image's captions, a caption's image, a picture's class

    cosines [q g] --sorted, the largest first; of equal ones the entry that comes first in the gallery--> place of the first right entry, from 0

The cosines are made and looked at in blocks of queries: 5,000 images by 25,000 captions would be
half a gigabyte.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_SCORES = 1 << 24  # cosines held at once


def ranks(
    queries: Float[np.ndarray, "q J"],
    gallery: Float[np.ndarray, "g J"],
    query_groups: Int[np.ndarray, "q"],
    gallery_groups: Int[np.ndarray, "g"],
    *,
    block: int | None = None,
) -> Int[np.ndarray, "q"]:
    """For each query, how many entries of the gallery stand before the first of its own group.

    Args:
        queries: embeddings of length 1.
        gallery: embeddings of length 1.
        query_groups: group of each query.
        gallery_groups: group of each entry.
        block: queries compared at once; by default as many as keep 2**24 cosines.

    Raises:
        ValueError: no entry of the gallery is of a query's group.
    """
    if len(orphans := np.setdiff1d(query_groups, gallery_groups)):
        raise ValueError(
            f"ranks: no entry of the gallery is of group {orphans[0]}, as a query is "
            f"({len(orphans)} groups have none): expected one at least."
        )
    rows = block or max(1, _SCORES // len(gallery))
    places = np.arange(len(gallery))
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ gallery.T
        right = query_groups[start : start + rows, None] == gallery_groups[None]
        own = np.where(right, scores, -np.inf)
        first = own.argmax(axis=1)[:, None]
        best = np.take_along_axis(own, first, axis=1)
        before = (scores > best) | ((scores == best) & (places[None] < first))
        found[start : start + rows] = before.sum(axis=1)
    return found


def recall(found: Int[np.ndarray, "q"], k: int) -> float:
    """The share of queries, 0..1, whose first right entry is among the first `k`.

    Args:
        found: of `ranks`.
        k: at least 1.
    """
    return float(np.mean(found < k))
