"""The rank of the first right entry in a list sorted by cosine.

Recall at k and the accuracy of a classification are computed from it.

    queries [q J], gallery [g J]    of length 1
    groups  int[q], int[g]          a query's right entries have its group: an image's captions, a
                                    caption's image, a picture's class

    cosines [q g] --sorted, the largest first; of equal ones the first in the gallery-->
        rank of the first right entry, from 0

The cosines are computed in blocks of queries: 5,000 images by 25,000 captions would need half a
gigabyte.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from flamingo_jax.core.finite import finite

_SCORES = 1 << 24  # cosines in memory at once


def ranks(
    queries: Float[np.ndarray, "q J"],
    gallery: Float[np.ndarray, "g J"],
    query_groups: Int[np.ndarray, "q"],
    gallery_groups: Int[np.ndarray, "g"],
    *,
    block: int | None = None,
) -> Int[np.ndarray, "q"]:
    """Returns, for each query, how many entries of the gallery come before the first right one.

    Args:
        queries: embeddings of length 1.
        gallery: embeddings of length 1.
        query_groups: group of each query.
        gallery_groups: group of each entry.
        block: queries compared at once; None: as many as give 2**24 cosines.

    Raises:
        ValueError: the gallery has no entry of a query's group.
        NonFiniteError: an embedding is NaN or infinite: no rank would be right.
    """
    finite(queries, "embeddings of queries")
    finite(gallery, "embeddings of the gallery")
    if len(orphans := np.setdiff1d(query_groups, gallery_groups)):
        raise ValueError(
            f"ranks: no entry of the gallery is of group {orphans[0]}, as a query is "
            f"({len(orphans)} groups have none): expected one at least."
        )
    rows = block or max(1, _SCORES // len(gallery))
    places = np.arange(len(gallery))
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), rows):
        scores = finite(queries[start : start + rows] @ gallery.T, "cosines of embeddings")
        right = query_groups[start : start + rows, None] == gallery_groups[None]
        right_scores = np.where(right, scores, -np.inf)
        first = right_scores.argmax(axis=1)[:, None]
        best = np.take_along_axis(right_scores, first, axis=1)
        before = (scores > best) | ((scores == best) & (places[None] < first))
        found[start : start + rows] = before.sum(axis=1)
    return found


def recall(found: Int[np.ndarray, "q"], k: int) -> float:
    """Returns the share of queries, 0..1, with a right entry among the first `k`.

    Args:
        found: the result of `ranks`.
        k: at least 1.

    Raises:
        ValueError: there are no queries.
    """
    if not len(found):
        raise ValueError(f"recall at {k} of no queries is not defined: compare at least one.")
    return float(np.mean(found < k))
