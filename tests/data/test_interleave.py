"""Figure 7 of the paper, token by token.

Where <EOC> stands, what phi is, and what a window keeps.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.interleave import IMAGE, attend_next, tokenise, tokenise_page, window
from flamingo_jax.data.schema import CorruptRecord, InterleavedPage
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer

PETS = (
    "Cute pics of my pets!",
    IMAGE,
    "My puppy sitting in the grass.",
    IMAGE,
    "My cat looking very dignified.",
)


@pytest.fixture(params=["pieces", "words"])
def tokenizer(request) -> SentencePieceTokenizer:
    """With <image> as plain text, and as a new token."""
    return request.getfixturevalue(request.param)


def test_figure_7(pieces):
    tokens, phi = tokenise(PETS, pieces)
    assert tokens[0] == pieces.bos_id
    assert tokens[-1] == pieces.eos_id
    assert pieces.decode(tokens) == (
        "Cute pics of my pets!<EOC><image>My puppy sitting in the grass.<EOC><image>My cat looking "
        "very dignified.<EOC>"
    )
    assert pieces.decode(tokens[phi == 0]) == "Cute pics of my pets!<EOC>"
    assert pieces.decode(tokens[phi == 1]) == "<image>My puppy sitting in the grass.<EOC>"
    assert pieces.decode(tokens[phi == 2]) == "<image>My cat looking very dignified.<EOC>"
    assert tokens.dtype == phi.dtype == np.int32
    assert len(pieces.encode("<image>")) > 1  # plain text, as in the paper


def test_figure_7_attending_the_next_image(pieces):
    """The text before a tag, with its <EOC>, attends that tag's image; tags their own.

    The last text nothing.
    """
    tokens, phi = tokenise(PETS, pieces)
    phi = attend_next(phi, len(pieces.encode("<image>")))
    assert phi.dtype == np.int32
    assert phi[0] == 1
    assert pieces.decode(tokens[phi == 1]) == "Cute pics of my pets!<EOC><image>"
    assert pieces.decode(tokens[phi == 2]) == "My puppy sitting in the grass.<EOC><image>"
    assert pieces.decode(tokens[phi == 0]) == "My cat looking very dignified.<EOC>"


@pytest.mark.parametrize(
    ("parts", "close", "expected"),
    [
        ((IMAGE, "w1"), True, "<image>|w1|<EOC>"),  # nothing to close after <BOS>, as in the pairs
        ((IMAGE, IMAGE, "w1"), True, "<image>|<EOC>|<image>|w1|<EOC>"),
        (("w1", "", "w2", IMAGE), True, "w1|w2|<EOC>|<image>|<EOC>"),
        (("w1",), True, "w1|<EOC>"),
        ((), True, "<EOC>"),
        ((IMAGE, "w1", IMAGE, "w2"), False, "<image>|w1|<EOC>|<image>|w2"),
        # written out: not doubled
        (("w1<EOC>", "w2 <EOC>", IMAGE, "w3"), False, "w1|<EOC>|w2|<EOC>|<image>|w3"),
        ((IMAGE, "w1<EOC>"), True, "<image>|w1|<EOC>"),
    ],
)
def test_end_of_chunk_stands_before_each_tag_and_at_the_end(words, parts, close, expected):
    tokens, phi = tokenise(parts, words, close=close)
    assert (
        "|".join(words.decode([token]) for token in tokens[1 : -1 if close else None]) == expected
    )
    assert (tokens[-1] == words.eos_id) == close
    np.testing.assert_array_equal(
        np.flatnonzero(np.diff(phi)) + 1, np.flatnonzero(tokens == words.id("<image>"))
    )


def test_open_text_needs_no_end_of_chunk(words, tmp_path):
    words.save(tmp_path)
    plain = SentencePieceTokenizer.load(tmp_path, ())
    assert tokenise(("w1",), plain, close=False)[0].tolist() == [plain.bos_id, plain.id("▁w1")]
    with pytest.raises(ValueError, match="'<EOC>' is neither"):
        tokenise(("w1",), plain)


def test_more_tags_than_images_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="more <image> tags than images: 'w1 <image> w2'"):
        tokenise(("w1 <image> w2",), tokenizer)
    with pytest.raises(CorruptRecord, match="more <image> tags than images"):
        tokenise_page(InterleavedPage((b"png", "see <image>")), tokenizer)


def naive_next(phi: np.ndarray, tag_length: int) -> np.ndarray:
    """The rule, one token at a time."""
    expected, since_tag = [], tag_length
    for at, value in enumerate(phi):
        since_tag = 0 if value > (phi[at - 1] if at else 0) else since_tag + 1
        in_tag = since_tag < tag_length and value > 0
        expected.append(value if in_tag else value + 1 if value < phi.max() else 0)
    return np.array(expected)


@st.composite
def pages(draw):
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    tag_length = draw(st.integers(1, 3))
    phi = np.repeat(np.arange(len(lengths)), [lengths[0], *(tag_length + n for n in lengths[1:])])
    return np.arange(100, 100 + len(phi), dtype=np.int32), phi.astype(np.int32), tag_length


@given(page=pages())
def test_attend_next_equals_the_rule(page):
    _, phi, tag_length = page
    np.testing.assert_array_equal(attend_next(phi, tag_length), naive_next(phi, tag_length))


@given(
    page=pages(), length=st.integers(1, 30), max_images=st.integers(1, 4), seed=st.integers(0, 1000)
)
def test_a_window_is_a_piece_of_the_page_with_its_own_images(page, length, max_images, seed):
    tokens, phi, tag_length = page
    options = {"length": length, "max_images": max_images, "tag_length": tag_length}
    piece = window(tokens, phi, **options, p_next=0.0, rng=np.random.default_rng(seed))
    size = len(piece.tokens)
    assert size <= length
    assert 0 <= piece.num_images <= max_images
    if size == 0:  # only a page that is empty
        assert not len(tokens)
        return
    start = int(piece.tokens[0]) - 100
    np.testing.assert_array_equal(piece.tokens, tokens[start : start + size])
    if len(tokens) <= length:
        assert start == 0
    # A token attends its image if the image's tag is in the window; images are numbered from the
    # window's first.
    first_tag = int(phi[start - 1]) if start else 0
    assert piece.first_image == first_tag
    np.testing.assert_array_equal(piece.phi, np.maximum(phi[start : start + size] - first_tag, 0))
    # It ends only where the page ends, where it is full, or where the image after the N-th begins.
    whole = start + size == len(tokens) or size == length
    assert whole or (
        piece.num_images == max_images and phi[start + size] == phi[start + size - 1] + 1
    )
    # If the page has an image, the window has one.
    assert piece.num_images > 0 or phi.max(initial=0) == 0 or len(tokens) <= length
    following = window(tokens, phi, **options, p_next=1.0, rng=np.random.default_rng(seed))
    # the direction does not move the window
    np.testing.assert_array_equal(following.tokens, piece.tokens)
    np.testing.assert_array_equal(following.phi, naive_next(piece.phi, tag_length))


def test_every_start_with_a_tag_occurs():
    phi = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    options = {"length": 2, "max_images": 1, "p_next": 0.0, "tag_length": 1}
    tokens = np.arange(9, dtype=np.int32)
    starts = {
        int(window(tokens, phi, **options, rng=np.random.default_rng(s)).tokens[0])
        for s in range(40)
    }
    assert starts == {3, 4}
    without = {
        int(window(tokens, phi * 0, **options, rng=np.random.default_rng(s)).tokens[0])
        for s in range(99)
    }
    assert without == set(range(8))


def test_direction_is_drawn_once_per_visit_with_p_next():
    phi = np.array([0, 1, 1, 2, 2], np.int32)
    options = {"length": 9, "max_images": 5, "p_next": 0.25, "tag_length": 1}
    drawn = [
        tuple(window(phi, phi, **options, rng=np.random.default_rng(seed)).phi.tolist())
        for seed in range(400)
    ]
    assert set(drawn) == {(0, 1, 1, 2, 2), (1, 1, 2, 2, 0)}
    # 100 expected, 4.6 standard deviations to either side
    assert 60 <= drawn.count((1, 1, 2, 2, 0)) <= 140
