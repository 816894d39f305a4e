"""Duplicates: nothing is lost that has no copy in the dataset, and the dataset has no duplicate."""

import functools
import itertools
import random

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.collect import collect
from data_pipelines.duplicates import Claims, left_out
from data_pipelines.near_duplicates import KEY, fingerprint
from data_pipelines.on_beam import Execution
from flamingo_jax.data.sources import Source
from tests.data_pipelines import readers

KINDS = ("url", "text", "image")


def claims(records):
    """Returns the claims of records, given as (unit, {name: value}), one after the other."""
    units = {}
    for number, (unit, keys) in enumerate(records):
        shared = units.setdefault(unit, [])
        shared += [
            ("train", number, rank, name, hash((name, value)))
            for rank, (name, value) in enumerate(keys.items())
        ]
    return [(unit, Claims(shared, {})) for unit, shared in units.items()]


def dropped(records, order=None):
    units = claims(records)
    if order is not None:
        random.Random(order).shuffle(units)
    return {position: name for _, (_, position, name) in left_out(units)}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ("u1 t1, u1 t2, u2 t2", {1: "url"}),
        ("u1 t1, u2 t1, u2 t2", {1: "text"}),
        ("u1 t1, u2 t1, u2 t2, u3 t2", {1: "text", 3: "text"}),
        ("u1 t1, u1 t1, u1 t1", {1: "url", 2: "url"}),
        ("u1 t1, u2 t2, u1 t2, u2 t1", {2: "url", 3: "url"}),
    ],
)
def test_a_record_is_left_out_if_a_kept_one_has_its_key(records, expected):
    parsed = [(0, dict(zip(KINDS, row.split(), strict=False))) for row in records.split(", ")]
    assert dropped(parsed) == expected


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.dictionaries(st.sampled_from(KINDS), st.integers(0, 4), min_size=1),
        )
    ),
    st.integers(),
)
def test_all_left_out_have_a_kept_copy_and_no_two_kept_share_a_key(records, order):
    records = sorted(records, key=lambda record: record[0])
    out = dropped(records, order)
    kept = [set(keys.items()) for at, (_, keys) in enumerate(records) if at not in out]
    assert all(not one & other for one, other in itertools.combinations(kept, 2))
    held = set().union(*kept)
    assert all((name, records[at][1][name]) in held for at, name in out.items())


@functools.cache
def chain():
    """Returns 24 texts: each is similar to the next (0.9), and the first is unlike the last.

    They share their first half, so that some are unlike and share a key all the same.
    """
    words = [f"w{number}" for number in range(4000)]
    return [" ".join(words[:600] + words[600 + 60 * k : 1800 + 60 * k]) for k in range(24)]


def similarity(one, other):
    one, other = (
        {tuple(words[at : at + 5]) for at in range(len(words) - 4)}
        for words in (one.split(), other.split())
    )
    return len(one & other) / len(one | other)


def run(units, directory, how):
    directory = epath.Path(directory)
    directory.mkdir()
    counts = collect(units, readers.texts, "document", directory, how)
    source = Source(directory)
    return [source[at].text for at in range(len(source))], counts


def test_chains_of_near_duplicates_keep_all_that_is_unlike(tmp_path):
    texts = chain()
    assert similarity(texts[0], texts[1]) > 0.9 > 0.55 > similarity(texts[0], texts[-1])
    units = [tuple(texts[at : at + 8]) for at in (0, 8, 16)]
    kept, counts = run(units, tmp_path / "one", Execution(num_workers=1))
    likeness = {text: max(similarity(text, other) for other in kept) for text in texts}
    assert min(likeness.values()) > 0.7
    assert 2 <= len(kept) <= 8
    assert counts.rejected == {"duplicate_text_alike": 24 - len(kept)}
    assert max(similarity(one, other) for one, other in itertools.combinations(kept, 2)) < 0.9


def test_time_of_many_records_with_one_key_is_linear(monkeypatch):
    """A key of near duplicates that n unlike texts share leads to at most 64 n comparisons."""
    sketches = np.random.default_rng(0).integers(0, 256, (400, 128), np.uint8)
    shared = [("train", at, 0, KEY, 7) for at in range(len(sketches))]
    known = {("train", at): sketch.tobytes() for at, sketch in enumerate(sketches)}
    compared = []
    monkeypatch.setattr(
        "data_pipelines.duplicates.is_alike", lambda _, others: compared.append(len(others))
    )
    assert not list(left_out([(0, Claims(shared, known))]))
    assert max(compared) == 64
    assert len(fingerprint("some words").sketch) == 128
