"""WordNet's files, in a small database of the official format, and the installed one."""

import pytest

from flamingo_jax.evaluation.metrics import wordnet
from flamingo_jax.evaluation.metrics.required import MissingResourceError

LICENCE = "  1 This software and database is being provided to you.  \n"
# Part of speech -> senses: words, then the senses above as (symbol, index in the list).
SENSES = {
    "noun": [
        (["entity"], []),
        (["animal", "beast"], [("@", 0)]),
        (["dog", "domestic_dog"], [("@", 1)]),
        (["Rex"], [("@i", 2)]),
        (["thing"], [("@", 0), ("~", 2)]),
        (["man"], [("@", 1)]),
        (["box"], [("@", 4)]),
    ],
    "verb": [(["move"], []), (["walk", "stroll"], [("@", 0)]), (["think"], [])],
    "adj": [(["big(a)"], [("&", 1)]), (["huge"], [("&", 0)])],
    "adv": [(["slowly"], [])],
}
LETTERS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    root = tmp_path_factory.mktemp("wordnet")
    for file, senses in SENSES.items():
        letter = LETTERS[file]

        def line(index, offsets, file=file, letter=letter, senses=senses):
            words, pointers = senses[index]
            kind = "s" if file == "adj" and index else letter
            listed = " ".join(f"{word} 0" for word in words)
            above = "".join(f" {symbol} {offsets[to]:08d} {letter} 0000" for symbol, to in pointers)
            fields = f"{offsets[index]:08d} 03 {kind} {len(words):02x} {listed}"
            return f"{fields} {len(pointers):03d}{above} | gloss with @ 1  \n"

        blank, offsets = [0] * len(senses), [len(LICENCE)]
        for index in range(len(senses) - 1):
            offsets.append(offsets[-1] + len(line(index, blank)))
        data = LICENCE + "".join(line(index, offsets) for index in range(len(senses)))
        (root / f"data.{file}").write_text(data)
        index = {
            word.split("(")[0].lower(): offsets[i]
            for i, (words, _) in enumerate(senses)
            for word in words
        }
        lines = [
            f"{word} {letter} 1 1 @ 1 0 {offset:08d}  \n" for word, offset in sorted(index.items())
        ]
        (root / f"index.{file}").write_text(LICENCE + "".join(lines))
        (root / f"{file}.exc").write_text("men man\n" if file == "noun" else "")
    return wordnet.WordNet(str(root))


def test_base_forms(net):
    assert net.base_forms("dogs", "n") == ["dog"]
    assert net.base_forms("boxes", "n") == ["box"]
    assert net.base_forms("men", "n") == ["man"]
    assert net.base_forms("walking", "v") == ["walk"]
    assert net.base_forms("moved", "v") == ["move"]
    assert net.base_forms("biggest", "a") == []
    assert net.base_forms("cats", "n") == []
    assert net.shortest("cats", "n") == "cats" and net.shortest("Dogs", "n") == "Dogs"


def test_senses(net):
    assert [sense.word for sense in net.synsets("DOGS")] == ["dog"]
    assert [
        sense.pos
        for word in ("rex", "stroll", "big", "huge", "slowly")
        for sense in net.synsets(word)
    ] == list("nvasr")
    assert net.synsets("unknown") == []


def test_similarity_by_hand(net):
    def near(one, other):
        return net.similarity(net.synsets(one)[0], net.synsets(other)[0])

    # depths from 1: entity 1, animal 2, dog 3
    assert near("dog", "beast") == pytest.approx(2 * 2 / (2 + 3))
    assert near("rex", "man") == pytest.approx(2 * 2 / (4 + 3))
    assert near("dog", "domestic_dog") == 1
    assert near("dog", "box") == pytest.approx(2 * 1 / (3 + 3))
    assert near("beast", "dog") == near("dog", "beast")
    # A verb without a verb above it is as high as the imaginary root: by itself from its own side,
    # by the root from below, as NLTK has it.
    assert near("move", "walk") == pytest.approx(2 / (1 + 2))
    assert near("walk", "move") == pytest.approx(2 / (3 + 2))
    assert near("walk", "think") == pytest.approx(2 / (3 + 2))
    assert near("big", "huge") == pytest.approx(2 / (2 + 2))
    assert near("slowly", "dog") == pytest.approx(2 / (2 + 4))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        MissingResourceError, match=r"index.noun is not in .*apt-get install wordnet-base"
    ):
        wordnet.WordNet(str(tmp_path))
