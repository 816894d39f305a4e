"""MinHash: how often texts of a known similarity share a key, measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.near_duplicates import BANDS, ROWS, SHINGLE, band_keys

WORDS = np.asarray([f"word{number}" for number in range(50_000)])


def pair(similarity, rng, num_shingles=400):
    """Returns two texts with this Jaccard similarity of their sets of shingles.

    They share one run of words, and all other words differ.
    """
    shared = round(2 * num_shingles * similarity / (1 + similarity))
    num_common = shared + SHINGLE - 1
    words = rng.choice(WORDS, num_common + 2 * (num_shingles - shared), replace=False)
    common, first, second = np.split(words, [num_common, num_shingles + SHINGLE - 1])
    return " ".join([*common, *first]), " ".join([*common, *second])


def share_of_found(similarity, num_pairs=400):
    rng = np.random.default_rng(round(100 * similarity))
    found = 0
    for _ in range(num_pairs):
        one, other = (set(band_keys(text)) for text in pair(similarity, rng))
        found += bool(one & other)
    return found / num_pairs


def shingles(text):
    words = text.split()
    return {tuple(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1)}


def test_pairs_have_the_similarity_that_they_are_made_with():
    one, other = map(shingles, pair(0.8, np.random.default_rng(0)))
    assert len(one & other) / len(one | other) == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize(
    ("similarity", "least", "most"), [(0.8, 0.90, 1.0), (0.9, 0.99, 1.0), (0.3, 0.0, 0.01)]
)
def test_share_of_pairs_found(similarity, least, most):
    assert least <= share_of_found(similarity) <= most


def test_probability_is_that_of_the_docstring():
    """The tolerance is four standard deviations of 400 draws."""
    for similarity in (0.5, 0.7):
        expected = 1 - (1 - similarity**ROWS) ** BANDS
        tolerance = 4 * (expected * (1 - expected) / 400) ** 0.5
        assert share_of_found(similarity) == pytest.approx(expected, abs=tolerance)


def test_unrelated_texts_share_nothing():
    rng = np.random.default_rng(1)
    keys = [key for _ in range(500) for key in band_keys(" ".join(rng.choice(WORDS, 300)))]
    assert len(keys) == len(set(keys)) == 500 * BANDS


def test_keys_are_the_same_in_every_process():
    assert band_keys("A cat.")[:2] == (
        "text_alike:0:d555b133e4112ab996d9e8c4",
        "text_alike:1:a912a5cb8700c05910221293",
    )


def test_case_punctuation_and_spacing_do_not_count():
    one, other = "The cat - 'Tom' - sat,\nand sat.", "the CAT Tom sat and sat"
    assert band_keys(one) == band_keys(other)
    assert band_keys("Ä b") == band_keys("ä  b!") != band_keys("a b")


def test_order_of_words_counts():
    one, other = " ".join(WORDS[:300]), " ".join(WORDS[:300][::-1])
    assert not set(band_keys(one)) & set(band_keys(other))


def test_short_texts():
    assert band_keys("") == band_keys(" ... ") == ()
    assert band_keys("one two") != band_keys("two one")


def test_long_text_is_hashed_in_parts():
    """The parts do not change the minima.

    A text and the same text twice differ only where the two copies meet.
    """
    text = " ".join(f"word{number}" for number in range(20_000))
    assert set(band_keys(text)) & set(band_keys(f"{text} {text}"))


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_keys(text):
    assert len(band_keys(text)) in (0, BANDS)
