"""Batches that are left out: which numbers are read, and what cannot change any more."""

import itertools

import pytest

from flamingo_jax.training.left_out import batch_number, same_until, spans


def numbers(texts, count, name="text"):
    return [batch_number(spans(texts), name, use) for use in range(count)]


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        ((), ()),
        (("text:0:1",), (0,)),
        (("text:5:7",), (5, 6)),
        (("text:5:7", "text:6:8", "text:2:3", "pairs:0:9"), (2, 5, 6, 7)),
        (("text:5:6", "text:6:7"), (5, 6)),
    ],
)
def test_all_other_batches_are_read_in_order(texts, left):
    expected = itertools.islice((n for n in itertools.count() if n not in left), 12)
    assert numbers(texts, 12) == list(expected)


def test_a_name_may_have_colons():
    assert numbers(("a:b:1:2",), 2, name="a:b") == [0, 2]


@pytest.mark.parametrize(
    "text",
    [
        "text",
        "text:5",
        "text:5:5",
        "text:7:5",
        ":1:2",
        "text:-1:2",
        f"a:1:{1 << 31}",
        "a:1:" + "9" * 5000,
    ],
)
def test_another_form_is_refused(text):
    with pytest.raises(ValueError, match="expected DATASET:FIRST:END"):
        spans([text])


@pytest.mark.parametrize("used", range(12))
def test_what_was_used_is_the_same_or_it_is_noticed(used):
    """Compares with the lists themselves, for all pairs of some values."""
    values = [(), ("text:2:3",), ("text:2:5",), ("text:5:7",), ("text:2:3", "text:5:7")]
    for before, now in itertools.product(values, values):
        expected = numbers(before, used) == numbers(now, used)
        assert same_until(spans(before), spans(now), {"text": used}) == expected, (before, now)
