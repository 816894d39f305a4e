"""Texts of the synthetic world: the kinds of documents, held-out pairs, and the look-up probe."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from flamingo_jax.world import scenes
from flamingo_jax.world import text as synthetic_text
from flamingo_jax.world.scenes import COLOURS, SHAPES
from flamingo_jax.world.text import NAMES, NEW_NAMES, SEEN_NAMES, WORDS, TextMix

KINDS = tuple(field.name for field in dataclasses.fields(TextMix))
COMBINATION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
NONE = dict.fromkeys(KINDS, 0.0)


def write(kind, num=60, seed=1):
    mix = TextMix(**{**NONE, kind: 1.0})
    return [
        synthetic_text.document(seed, "train", index, mix=mix, num_words=94) for index in range(num)
    ]


def test_words_are_distinct_and_single():
    assert len(NAMES) == len(set(NAMES)) == 60
    assert len(NEW_NAMES) == 12
    assert not set(NEW_NAMES) & set(SEEN_NAMES)
    assert len(set(WORDS)) == len(WORDS)
    assert not any(re.search(r"\s", word) for word in WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_fit_a_row_and_use_known_words(kind):
    for text in write(kind):
        words = text.split(" ")
        assert 70 < len(words) <= 94
        assert set(words) <= set(WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_pairs_are_never_named(kind):
    pairs = {pair for text in write(kind) for pair in COMBINATION.findall(text)}
    assert all(not scenes.is_held_out(COLOURS.index(c), SHAPES.index(s)) for c, s in pairs)
    assert len(pairs) > 40 or kind == "dictionary"


def test_all_names_occur_in_text():
    counts = collections.Counter(
        word for text in write("dictionary", 200) + write("binding", 200) for word in text.split()
    )
    assert all(counts[name] for name in NAMES)


def test_dictionary_is_consistent_and_needs_look_up():
    for text in write("dictionary"):
        entries = re.findall(r"(\w+) (?:: )?(\w+)", text)
        assert len(entries) >= 23
        meaning = dict(entries)
        assert all(meaning[key] == name for key, name in entries)
        assert 3 <= len(meaning) <= 7
        assert len(set(meaning.values())) == len(meaning)
        following = collections.defaultdict(set)  # the order of the keys does not help
        for (_, name), (key, _) in itertools.pairwise(entries):
            following[name].add(key)
        assert max(map(len, following.values())) > 1


def test_binding_names_one_attribute():
    for text in write("binding"):
        entries = re.findall(r"\w+ (\w+) (\w+) \. this is a (\w+)", text)
        assert len(entries) >= 9
        consistent = []
        for attribute in (0, 1):
            meaning = {entry[attribute]: entry[2] for entry in entries}
            consistent.append(
                all(meaning[e[attribute]] == e[2] for e in entries)
                and len(set(meaning.values())) == len(meaning)
            )
        assert any(consistent)
        assert 2 <= len({name for _, _, name in entries}) <= 4


def test_answers_are_right():
    question = r"([\w ]+) \. question : what (\w+) is ([\w ]+) \? answer : (\w+)"
    asked = [found for text in write("qa") for found in re.findall(question, text)]
    assert len(asked) > 200
    for described, attribute, about, answer in asked:
        pairs = COMBINATION.findall(described)
        assert len(pairs) == 2
        assert [pair for pair in pairs if {about.removeprefix("the "), answer} == set(pair)]
        assert answer in (COLOURS if attribute == "colour" else SHAPES)
    shown = [
        found
        for text in write("format")
        for found in re.findall(r"([\w ]+) \. output : (\w+)", text)
    ]
    assert len(shown) > 400
    assert all(answer in described.split() for described, answer in shown)


def test_mix_is_kept():
    mix = TextMix()
    rng = np.random.default_rng(0)
    counts = collections.Counter(synthetic_text.choose_kind(rng, mix) for _ in range(4000))
    for kind, share in dataclasses.asdict(mix).items():
        assert counts[kind] / 4000 == pytest.approx(share, abs=0.03)


def test_document_follows_from_seed_stream_and_index():
    def text(seed, stream, index):
        return synthetic_text.document(seed, stream, index, mix=TextMix(), num_words=94)

    one = text(1, "train", 7)
    assert text(1, "train", 7) == one
    assert len({one, text(2, "train", 7), text(1, "test", 7), text(1, "train", 8)}) == 4


@pytest.mark.parametrize("ways", [2, 4, 6])
def test_the_answer_is_on_the_lookup_page(ways):
    asked = collections.Counter()
    for page in synthetic_text.lookup_pages(ways, 100, 0):
        entries = re.findall(r"(\w+) : (\w+) ;", page.prompt)
        assert len(entries) == 2 * ways
        assert set(entries[:ways]) == set(entries[ways:])
        assert dict(entries)[page.prompt.split()[-2]] == page.answer
        assert set(page.candidates) == {name for _, name in entries} <= set(NEW_NAMES)
        asked[[name for _, name in entries[ways:]].index(page.answer)] += 1
    assert len(asked) == ways  # the place of the answer on the page does not help


def test_lookup_pages_refuse_more_ways_than_names():
    with pytest.raises(ValueError, match="ways=13, expected 1 to 12"):
        synthetic_text.lookup_pages(13, 1, 0)
