"""The syntax of pairs and captions in the paper, and documents packed into rows."""

import numpy as np
import pytest

from flamingo_jax.data.captions import tokenise_pair
from flamingo_jax.data.interleave import tokenise_text
from flamingo_jax.data.pack import pack, window
from flamingo_jax.data.schema import CorruptRecord


def test_pair_syntax(words, pieces):
    b, e = words.bos_id, words.eos_id
    assert tokenise_pair("w1 a", words).tolist() == [b, *words.encode("<image> w1 a<EOC>"), e]
    with_space, without = (
        tokenise_pair("My cat", pieces, space_prefix=space) for space in (True, False)
    )
    assert pieces.decode(with_space) == "<image> My cat<EOC>"
    assert pieces.decode(without) == "<image>My cat<EOC>"
    for tokens in (with_space, without):
        assert tokens[0] == pieces.bos_id
        assert tokens[-2:].tolist() == [pieces.eoc_id, pieces.eos_id]


def test_a_tag_in_the_text_is_one_too_many(words):
    with pytest.raises(CorruptRecord, match="more <image> tags than images"):
        tokenise_pair("w1 <image>", words)


def test_captions_and_documents_have_no_image_and_no_end_of_chunk(words):
    expected = [words.bos_id, *words.encode("w1 a"), words.eos_id]
    assert tokenise_text("w1 a", words).tolist() == expected


def document(first: int, length: int) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.int32)


def test_documents_are_packed_in_order_and_the_last_is_cut():
    ((tokens, segment),) = pack([document(10, 3), document(20, 2), document(30, 9)], 8)
    assert tokens.tolist() == [10, 11, 12, 20, 21, 30, 31, 32]
    assert segment.tolist() == [1, 1, 1, 2, 2, 3, 3, 3]


def test_a_row_may_stay_short():
    ((tokens, segment),) = pack([document(10, 3)], 8)
    assert tokens.tolist() == [10, 11, 12]
    assert segment.tolist() == [1, 1, 1]
    assert [len(part) for part in pack([], 8)[0]] == [0, 0]


def test_no_more_documents_are_read_than_fit():
    def documents():
        yield document(10, 4)
        pytest.fail("the row is full")

    assert pack(documents(), 4)[0][0].tolist() == [10, 11, 12, 13]


def test_long_documents_yield_every_window():
    tokens = document(0, 6)
    starts = set()
    for seed in range(60):
        piece = window(tokens, 4, np.random.default_rng(seed))
        np.testing.assert_array_equal(piece, tokens[piece[0] : piece[0] + 4])
        starts.add(int(piece[0]))
    assert starts == {0, 1, 2}
    np.testing.assert_array_equal(window(tokens, 6, np.random.default_rng(0)), tokens)


def test_rows_of_a_group_are_packed_as_one():
    """A document that is cut at the end of a row goes on in the next row.

    Segments count from 1 in each row.
    """
    rows = pack([document(10, 3), document(20, 7), document(40, 2)], 5, num_rows=3)
    assert [tokens.tolist() for tokens, _ in rows] == [
        [10, 11, 12, 20, 21],
        [22, 23, 24, 25, 26],
        [40, 41],
    ]
    assert [segment.tolist() for _, segment in rows] == [[1, 1, 1, 2, 2], [1] * 5, [1, 1]]
    rows = pack([document(10, 3)], 2, num_rows=3)
    assert [tokens.tolist() for tokens, _ in rows] == [[10, 11], [12], []]
