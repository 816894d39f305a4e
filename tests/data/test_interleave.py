"""Figure 7 of the paper, token by token: the places of <EOC>, phi, and windows of a page."""

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
    """<image> is plain text in the first, a new token in the second."""
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
    """The text before a tag, with its <EOC>, attends the tag's image, and the last text nothing.

    A tag attends its image.
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
        ((IMAGE, "w1"), True, "<image>|w1|<EOC>"),  # after <BOS> no chunk is open, as in pairs
        ((IMAGE, IMAGE, "w1"), True, "<image>|<EOC>|<image>|w1|<EOC>"),
        (("w1", "", "w2", IMAGE), True, "w1|w2|<EOC>|<image>|<EOC>"),
        (("w1",), True, "w1|<EOC>"),
        ((), True, "<EOC>"),
        ((IMAGE, "w1", IMAGE, "w2"), False, "<image>|w1|<EOC>|<image>|w2"),
        # An <EOC> in the text is not written twice.
        (("w1<EOC>", "w2 <EOC>", IMAGE, "w3"), False, "w1|<EOC>|w2|<EOC>|<image>|w3"),
        ((IMAGE, "w1<EOC>"), True, "<image>|w1|<EOC>"),
    ],
)
def test_end_of_chunk_is_before_each_tag_and_at_the_end(words, parts, close, expected):
    tokens, phi = tokenise(parts, words, close=close)
    written = tokens[1 : -1 if close else None]
    assert "|".join(words.decode([token]) for token in written) == expected
    assert (tokens[-1] == words.eos_id) == close
    tags = np.flatnonzero(tokens == words.id("<image>"))
    np.testing.assert_array_equal(np.flatnonzero(np.diff(phi)) + 1, tags)


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
    """The rule of `attend_next`, one token at a time."""
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
    if size == 0:  # only if the page is empty
        assert not len(tokens)
        return
    start = int(piece.tokens[0]) - 100
    np.testing.assert_array_equal(piece.tokens, tokens[start : start + size])
    if len(tokens) <= length:
        assert start == 0
    # A token attends its image if the tag of the image is in the window. Images are counted from
    # the first image of the window.
    first_tag = int(phi[start - 1]) if start else 0
    assert piece.first_image == first_tag
    np.testing.assert_array_equal(piece.phi, np.maximum(phi[start : start + size] - first_tag, 0))
    # It ends only at the end of the page, if it is full, or before the tag of image N + 1.
    if start + size != len(tokens) and size != length:
        assert piece.num_images == max_images
        assert phi[start + size] == phi[start + size - 1] + 1
    # If the page has an image, the window has one.
    assert piece.num_images > 0 or phi.max(initial=0) == 0 or len(tokens) <= length
    following = window(tokens, phi, **options, p_next=1.0, rng=np.random.default_rng(seed))
    # The window does not depend on the direction.
    np.testing.assert_array_equal(following.tokens, piece.tokens)
    np.testing.assert_array_equal(following.phi, naive_next(piece.phi, tag_length))


def test_every_start_with_a_tag_occurs():
    phi = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    options = {"length": 2, "max_images": 1, "p_next": 0.0, "tag_length": 1}
    tokens = np.arange(9, dtype=np.int32)

    def start(phi, seed):
        return int(window(tokens, phi, **options, rng=np.random.default_rng(seed)).tokens[0])

    assert {start(phi, seed) for seed in range(40)} == {3, 4}
    assert {start(phi * 0, seed) for seed in range(99)} == set(range(8))  # a page without tags


def test_direction_is_drawn_once_per_visit_with_p_next():
    phi = np.array([0, 1, 1, 2, 2], np.int32)
    options = {"length": 9, "max_images": 5, "p_next": 0.25, "tag_length": 1}
    drawn = [
        tuple(window(phi, phi, **options, rng=np.random.default_rng(seed)).phi.tolist())
        for seed in range(400)
    ]
    assert set(drawn) == {(0, 1, 1, 2, 2), (1, 1, 2, 2, 0)}
    # 100 are expected; the bounds are 4.6 standard deviations away.
    assert 60 <= drawn.count((1, 1, 2, 2, 0)) <= 140
