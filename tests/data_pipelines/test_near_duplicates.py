"""MinHash: how often texts of a known similarity share a key, measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.near_duplicates import BANDS, ROWS, SHINGLE, fingerprint, is_alike

WORDS = np.asarray([f"word{number}" for number in range(50_000)])


def keys(text):
    return fingerprint(text).keys


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
        one, other = (set(keys(text)) for text in pair(similarity, rng))
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


@pytest.mark.parametrize(("similarity", "expected"), [(0.95, 1), (0.9, 1), (0.68, 0), (0.5, 0)])
def test_sketches_decide_whether_texts_are_alike(similarity, expected):
    """The standard deviation of the estimate is at most 0.045, so 99 of 100 are right."""
    rng = np.random.default_rng(round(100 * similarity))
    pairs = [map(fingerprint, pair(similarity, rng, num_shingles=200)) for _ in range(100)]
    alike = [is_alike(one.sketch, [other.sketch]) for one, other in pairs]
    assert abs(np.mean(alike) - expected) <= 0.01
    assert not is_alike(fingerprint("a b c").sketch, ())


def test_unrelated_texts_share_nothing():
    rng = np.random.default_rng(1)
    found = [key for _ in range(500) for key in keys(" ".join(rng.choice(WORDS, 300)))]
    assert len(found) == len(set(found)) == 500 * BANDS


def test_keys_are_the_same_in_every_process():
    assert keys("A cat.")[:2] == (
        "text_alike:0:d555b133e4112ab996d9e8c4",
        "text_alike:1:a912a5cb8700c05910221293",
    )


def test_case_punctuation_and_spacing_do_not_count():
    one, other = "The cat - 'Tom' - sat,\nand sat.", "the CAT Tom sat and sat"
    assert keys(one) == keys(other)
    assert keys("Ä b") == keys("ä  b!") != keys("a b")


def test_order_of_words_counts():
    one, other = " ".join(WORDS[:300]), " ".join(WORDS[:300][::-1])
    assert not set(keys(one)) & set(keys(other))


def test_short_texts():
    assert keys("") == keys(" ... ") == ()
    assert keys("one two") != keys("two one")


def test_long_text_is_hashed_in_parts():
    """The parts do not change the minima.

    A text and the same text twice differ only where the two copies meet.
    """
    text = " ".join(f"word{number}" for number in range(20_000))
    assert set(keys(text)) & set(keys(f"{text} {text}"))


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_has_keys(text):
    assert len(keys(text)) in (0, BANDS)
