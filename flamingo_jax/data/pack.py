"""Text for the language model: documents packed into rows of L tokens, told apart by their segment.

    tokens   <BOS> a b c <EOS> <BOS> d e <EOS> <pad> <pad>
    segment    1   1 1 1   1     2   2 2   2     0     0
    weight     0   1 1 1   1     0   1 1   1     0     0

Attention stays within a segment, and no document is asked to predict the <BOS> of the next. Rows of
a group are packed as
one: a document that does not fit in its row goes on in the next one, as a segment of its own.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from flamingo_jax.tokenizers.base import Tokenizer


def tokenise_document(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, "T"]:
    """Returns `<BOS>{text}<EOS>` as int32[T]."""
    return np.asarray([*tokenizer.start_ids, *tokenizer.encode(text), tokenizer.eos_id], np.int32)


def window(
    tokens: Int[np.ndarray, "T"], length: int, rng: np.random.Generator
) -> Int[np.ndarray, "L"]:
    """Returns the whole document if it fits in `length`, else a random window, so that no text is never seen."""
    start = int(rng.integers(len(tokens) - length + 1)) if len(tokens) > length else 0
    return tokens[start : start + length]


def pack(
    documents: Iterable[np.ndarray], length: int, num_rows: int = 1
) -> list[tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]]:
    """Packs documents, in their order, until the rows are full.

    A document that a row's end cuts goes on in the next row.

    Args:
        documents: int32[T] tokens of each; taken one by one, no more of them than the rows need.
        length: L.
        num_rows: rows to fill.

    Returns:
        For each row int32[l] tokens and int32[l] segments, l <= L. The last document is cut where
        the last row ends.
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
        of_row = numbers[start : start + length]
        rows.append(
            (tokens[start : start + length], of_row - of_row[:1].sum(dtype=np.int32) + np.int32(1))
        )
    return rows
