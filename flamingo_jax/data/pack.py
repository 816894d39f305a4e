"""Packs documents into rows of L tokens; each document is one segment.

    tokens   <BOS> a b c <EOS> <BOS> d e <EOS> <pad> <pad>
    segment    1   1 1 1   1     2   2 2   2     0     0
    weight     0   1 1 1   1     0   1 1   1     0     0

Attention stays within a segment, and no document predicts the <BOS> of the next one. The rows of a
group are packed like one long row: a document that is cut at the end of a row goes on in the next
row, as a new segment.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int


def window(
    tokens: Int[np.ndarray, "T"], length: int, rng: np.random.Generator
) -> Int[np.ndarray, "L"]:
    """Returns the document if it fits in `length`, else a random window of it.

    The window is random so that every part of a long document is trained on.
    """
    start = int(rng.integers(len(tokens) - length + 1)) if len(tokens) > length else 0
    return tokens[start : start + length]


def pack(
    documents: Iterable[np.ndarray], length: int, num_rows: int = 1
) -> list[tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]]:
    """Packs documents in their order until the rows are full.

    A document that is cut at the end of a row goes on in the next row. The last document is cut at
    the end of the last row.

    Args:
        documents: int32[T] tokens of each. They are read one by one, only as many as needed.
        length: L.
        num_rows: rows to fill.

    Returns:
        For each row int32[l] tokens and int32[l] segments, l <= L.
    """
    pieces: list[np.ndarray] = []
    room = num_rows * length
    for document in documents:
        pieces.append(document[:room])
        room -= len(pieces[-1])
        if room == 0:
            break
    tokens = np.concatenate([np.zeros(0, np.int32), *pieces])
    numbers = np.repeat(np.arange(len(pieces), dtype=np.int32), [len(piece) for piece in pieces])
    rows = []
    for start in range(0, num_rows * length, length):
        row = slice(start, start + length)
        first = numbers[row][:1].sum(dtype=np.int32)  # 0 if the row is empty
        rows.append((tokens[row], numbers[row] - first + np.int32(1)))
    return rows
