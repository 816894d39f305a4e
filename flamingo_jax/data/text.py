"""Text for the language model: documents packed into rows of L tokens, told apart by their segment.

    tokens   <BOS> a b c <EOS> <BOS> d e <EOS> <pad> <pad>
    segment    1   1 1 1   1     2   2 2   2     0     0
    weight     0   1 1 1   1     0   1 1   1     0     0

Attention stays within a segment, and no document is asked to predict the <BOS> of the next.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from flamingo_jax.data.tokenizer import Tokenizer


def tokenise_document(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, "T"]:
    """Returns `<BOS>{text}<EOS>` as int32[T]."""
    return np.asarray([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id], np.int32)


def window(tokens: Int[np.ndarray, "T"], length: int, rng: np.random.Generator) -> Int[np.ndarray, "L"]:
    """Returns the whole document if it fits in `length`, else a random window, so that no text is never seen."""
    start = int(rng.integers(len(tokens) - length + 1)) if len(tokens) > length else 0
    return tokens[start : start + length]


def pack(documents: Iterable[np.ndarray], length: int) -> tuple[Int[np.ndarray, "L"], Int[np.ndarray, "L"]]:
    """Packs documents, in their order, until the row is full.

    Args:
        documents: int32[T] tokens of each; taken one by one, no more of them than the row needs.
        length: L.

    Returns:
        int32[l] tokens and int32[l] segments, l <= L. The last document is cut where the row ends.
    """
    pieces: list[np.ndarray] = []
    room = length
    for document in documents:
        pieces.append(document[:room])
        room -= len(pieces[-1])
        if room == 0:
            break
    if not pieces:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    segments = np.repeat(np.arange(1, len(pieces) + 1, dtype=np.int32), [len(piece) for piece in pieces])
    return np.concatenate(pieces), segments
