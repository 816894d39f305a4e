"""The pool of a data shard has space for the images of its rows, except in one run of a million."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import pool
from data_pipelines.on_beam import Execution
from data_pipelines.write_records import write_records
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.schema import Document, ImageText, InterleavedPage
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece


@given(
    rows=st.integers(1, 40), weights=st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(any)
)
def test_distribution_is_that_of_the_sum(rows, weights):
    histogram = np.array(weights) / sum(weights)
    found = pool.distribution(histogram, rows)
    assert len(found) == rows * (len(weights) - 1) + 1
    expected = np.ones(1)
    for _ in range(rows):
        expected = np.convolve(expected, histogram)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


def test_capacity_is_exact_to_the_end_of_the_tail():
    """64 rows with one image at probability 1/2: the binomial tail, down to 2**-64."""
    for probability in (0.5, 1e-3, 1e-9, 1e-15, 2.0**-63):
        found = pool.capacity(np.array([0.5, 0.5]), 64, probability)
        tail = [sum(math.comb(64, k) for k in range(c + 1, 65)) / 2**64 for c in range(65)]
        assert found == next(c for c in range(65) if tail[c] <= probability)
    assert pool.capacity(np.array([0.0, 1.0]), 7, 1e-9) == 7
    assert pool.capacity(np.array([1.0, 0.0]), 7, 1e-9) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Datasets of pages and documents, and a tokenizer of words.

    300 pages of 0 to 3 images (0, 0, 1, 1, 1, 3 in turn), and 100 documents of 3 to 12 words.
    """
    root = tmp_path_factory.mktemp("pool")
    train_sentencepiece(["one two three"] * 9, root / "tokenizer.model", 100, "word")

    def pages():
        for k in range(300):
            yield InterleavedPage((b"never decoded", "one") * (0, 0, 1, 1, 1, 3)[k % 6])

    write_records(root / "pages", "interleaved_page", {"train": pages})
    documents = lambda: (Document(" ".join(["one"] * (3 + k % 10))) for k in range(100))
    write_records(root / "text", "document", {"train": documents})
    write_records(root / "pairs", "image_text", {"train": lambda: [ImageText(b"x", "one")]})
    return root


def asked(made, name, **changes) -> pool.PoolRequest:
    fields = {"new_tokens": ("<EOC>", "<image>"), "length": 16} | changes
    return pool.PoolRequest(str(made / name), str(made), **fields)


def test_of_pages(made, tmp_path):
    request = asked(made, "pages", rows_per_shard=64, batches=100, overflow_probability=1e-3)
    printed = pool.build(request, tmp_path, Execution())
    written = json.loads((tmp_path / "pool.json").read_text())
    histogram = written["images_per_row"]["histogram"]
    np.testing.assert_allclose(histogram, np.array([100, 150, 0, 50, 0, 1]) / 301)
    assert written["images_per_row"]["mean"] == pytest.approx(1.0)
    assert printed["pool"] == pool.capacity(np.array(histogram), 64, 1e-5) == written["pool"]
    assert 64 < printed["pool"] < 128 < printed["without_pool"] == 320
    assert written["share_of_pool_empty"] == pytest.approx(1 - 64 / printed["pool"])
    assert printed["percent_empty_without_pool"] == 80
    assert (printed["sampled"], printed["corrupt"]) == (300, 0)


def test_windows_are_those_of_training(made, tmp_path):
    """A window has fewer images than its page where the row or N cuts it."""
    request = asked(made, "pages", max_images=2, rows_per_shard=1)
    pool.build(request, tmp_path, Execution())
    histogram = json.loads((tmp_path / "pool.json").read_text())["images_per_row"]["histogram"]
    np.testing.assert_allclose(histogram, np.array([100, 150, 51]) / 301)


@pytest.mark.parametrize("rows", [1, 10])
def test_of_documents(rows, made, tmp_path):
    """The numbers for a row are those of the rows that the loader makes."""
    printed = pool.build(asked(made, "text", length=64, rows_per_group=rows), tmp_path, Execution())
    written = json.loads((tmp_path / "pool.json").read_text())
    assert written["tokens_per_document"] == pytest.approx(9.5)
    tokenizer = SentencePieceTokenizer.load(made)
    share = printed["documents_per_row"]
    assert 6 <= share <= 9
    if rows == 10:
        assert printed["percent_text_seen"] >= 90
    dataset = DatasetConfig(
        "text",
        str(made / "text"),
        batch_size=100,
        length=64,
        documents_per_row=share,
        rows_per_group=rows,
    )
    mixture = Mixture(DataConfig("", 1, {"text": dataset}), seed=0, tokenizer=tokenizer)
    padded = np.mean(mixture.batch("text", 0).segment == 0)
    assert 100 * padded == pytest.approx(printed["percent_padded_tokens"], abs=3)
    assert written["share_of_text_seen"]["1"] == 1.0
    assert written["share_filled"]["128"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "--dataset is missing"),
        ({"rows_per_shard": 0}, "--rows_per_shard=0, expected at least 1"),
        ({"overflow_probability": 1.0}, "--overflow_probability=1.0"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        pool.PoolRequest(**({"dataset": "d", "tokenizer": "t"} | changes))


def test_pairs_need_no_pool(made, tmp_path):
    with pytest.raises(ValueError, match="holds image_text, each with one visual input"):
        pool.build(asked(made, "pairs"), tmp_path, Execution())
