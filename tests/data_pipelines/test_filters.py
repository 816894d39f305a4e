"""Gopher's filters: every rule at its threshold and just beyond.

The words and characters of the texts can be counted by hand.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import filters
from data_pipelines.filters import QualityLimits, RepetitionLimits, quality, repetition


def words(count, length=4, first=0):
    """Returns `count` different words of `length` letters."""
    letters = itertools.product("abcdefghij", repeat=length)
    return ["".join(word) for word in itertools.islice(letters, first, first + count)]


def prose(count):
    """Returns `count` different words in one line, two of them stop words."""
    return " ".join(["that", "have", *words(count - 2)])


def lines_of(count, make):
    """Returns `count` lines of 5 different words each, "that have" in the first.

    `make(number, line)` can change them.
    """
    every = ["that", "have", *words(5 * count - 2)]
    lines = [" ".join(every[5 * number : 5 * number + 5]) for number in range(count)]
    return "\n".join(make(number, line) for number, line in enumerate(lines))


def reason(reject):
    return reject.reason if reject else None


def replaced(count, share, word, other=None):
    """Returns prose of `count` words of which the share `share` are `word`."""
    num = round(count * share)
    return " ".join([*prose(count - num).split(), *([word] * num)])


QUALITY = {
    "too_few_words": (prose(50), prose(49)),
    "too_many_words": (
        " ".join(["that", "have"] * 50_000),
        " ".join(["that", "have"] * 50_000 + ["that"]),
    ),
    # 100 words: 2 of 4 letters, 98 others; 3.0 and 2.99 characters on average, 10.0 and 10.01
    "mean_word_length low": (
        " ".join(["that", "have", "on", "in", *words(96, 3)]),
        " ".join(["that", "have", "on", "in", "at", *words(95, 3)]),
    ),
    "mean_word_length high": (
        " ".join(["that", "have", *words(86, 10), *words(12, 11)]),
        " ".join(["that", "have", *words(85, 10), *words(13, 11)]),
    ),
    "symbols hash": (prose(100) + "#" * 10, prose(100) + "#" * 11),
    "bullets": (
        lines_of(20, lambda number, line: f"- {line}" if number < 18 else line),
        lines_of(20, lambda number, line: f"• {line}" if number < 19 else line),
    ),
    "ellipses": (
        lines_of(20, lambda number, line: f"{line}..." if number < 6 else line),
        lines_of(20, lambda number, line: f"{line} …" if number < 7 else line),
    ),
    "alphabetic": (replaced(100, 0.20, "1234"), replaced(100, 0.21, "1234")),
    "stop_words": (" ".join(["that", "have", *words(98)]), " ".join(["that", "that", *words(98)])),
}


@pytest.mark.parametrize("rule", QUALITY)
def test_quality_at_the_threshold_and_beyond(rule):
    at, beyond = QUALITY[rule]
    assert quality(at) is None
    assert reason(quality(beyond)) == rule.split()[0]
    assert not quality(beyond).broken


@pytest.mark.parametrize("ellipsis", ["...", "…"])
def test_ellipses_count_as_symbols(ellipsis):
    every = prose(100).split()
    at = [word + ellipsis * (number < 10) for number, word in enumerate(every)]
    beyond = [word + ellipsis * (number < 11) for number, word in enumerate(every)]
    assert quality(" ".join(at)) is None
    assert reason(quality(" ".join(beyond))) == "symbols"


def test_words_are_counted_before_they_are_split():
    """No list of words is made of a text far beyond the limit."""
    found = quality("ab " * 3_000_000)
    assert reason(found) == "too_many_words"


@pytest.mark.parametrize("stop", ["The of", '"With" (and)', "TO be,", "that—  have…"])
def test_stop_words_are_found_without_case_and_punctuation(stop):
    assert quality(f"{stop} {prose(60).removeprefix('that have ')}") is None


def test_a_part_of_a_word_is_no_stop_word():
    assert reason(quality(" ".join(["there", "ofte", *words(98)]))) == "stop_words"


@pytest.mark.parametrize("text", ["", " \n\t ", "\n\n"])
def test_texts_without_words(text):
    assert reason(quality(text)) == "too_few_words"
    assert reason(quality(text, QualityLimits(min_words=0))) == "too_few_words"
    assert repetition(text) is None


def off(**changed):
    """Returns limits that reject nothing, except the changed ones."""
    shares = ("lines", "paragraphs", "line_characters", "paragraph_characters")
    limits = dict.fromkeys(shares, 1.0) | {"top": (1.0,) * 3, "duplicate": (1.0,) * 6}
    return RepetitionLimits(**(limits | changed))


def only_top(n, limit):
    """Returns limits that only the top n-gram can break."""
    return off(top=tuple(limit if m == n else 1.0 for m in (2, 3, 4)))


def units(total, duplicates):
    """Returns `total` units of one word of 4 letters, of which `duplicates` repeat the first."""
    distinct = words(total - duplicates)
    return distinct + distinct[:1] * duplicates


def by_characters(share, separator):
    """Returns 20 units of 1000 characters in all.

    Two of them are duplicates, with the share `share` of the characters.
    """
    duplicate = round(1000 * share / 2)
    long = "x" * duplicate
    rest = 1000 - 3 * duplicate
    others = [*words(16, 5), "y" * (rest - 80)]
    return separator.join([long, *others, long, long])


REPETITION = {
    "duplicate_lines": ("\n".join(units(10, 3)), "\n".join(units(10, 4)), {"lines": 0.30}),
    "duplicate_paragraphs": (
        "\n\n".join(units(10, 3)),
        "\n \n".join(units(10, 4)),
        {"paragraphs": 0.30},
    ),
    "duplicate_line_characters": (
        by_characters(0.200, "\n"),
        by_characters(0.202, "\n"),
        {"line_characters": 0.20},
    ),
    "duplicate_paragraph_characters": (
        by_characters(0.200, "\n\n"),
        by_characters(0.202, "\n\n"),
        {"paragraph_characters": 0.20},
    ),
}


@pytest.mark.parametrize("rule", REPETITION)
def test_repeated_lines_and_paragraphs_at_the_threshold_and_beyond(rule):
    at, beyond, limit = REPETITION[rule]
    assert repetition(at, off(**limit)) is None
    assert reason(repetition(beyond, off(**limit))) == rule
    assert getattr(RepetitionLimits(), next(iter(limit))) == next(iter(limit.values()))


def top_text(n, occurrences, total):
    """Returns `total` words of 4 letters.

    One n-gram of fixed words occurs `occurrences` times, never adjacent. Nothing else repeats.
    """
    ngram, others = words(n), iter(words(total, 4, 100))
    text = []
    for _ in range(occurrences):
        text += [*ngram, next(others)]
    return " ".join(text + [next(others) for _ in range(total - len(text))])


@pytest.mark.parametrize(("n", "limit"), [(2, 0.20), (3, 0.18), (4, 0.16)])
def test_top_ngram_at_the_threshold_and_beyond(n, limit):
    occurrences = 12
    total = round(occurrences * n / limit)
    assert occurrences * n / total == limit  # 120, 200 and 300 words
    limits = only_top(n, limit)
    assert repetition(top_text(n, occurrences, total), limits) is None
    shorter = top_text(n, occurrences, total - 1)
    assert reason(repetition(shorter, limits)) == f"top_{n}_gram"


def duplicate_text(n, count, total):
    """Returns `total` words of 4 letters. `count` n-grams occur twice each, never adjacent.

    Nothing else repeats.
    """
    distinct = iter(words(2 * total))
    ngrams = [[next(distinct) for _ in range(n)] for _ in range(count)]
    text = [word for ngram in ngrams * 2 for word in [*ngram, next(distinct)]]
    return " ".join(text + [next(distinct) for _ in range(total - len(text))])


@pytest.mark.parametrize(
    ("n", "limit", "count", "total"),
    [
        (5, 0.15, 3, 100),
        (6, 0.14, 7, 300),
        (7, 0.13, 13, 700),
        (8, 0.12, 3, 200),
        (9, 0.11, 11, 900),
        (10, 0.10, 1, 100),
    ],
)
def test_duplicate_ngrams_at_the_threshold_and_beyond(n, limit, count, total):
    """The second occurrence of each n-gram counts, the first does not."""
    assert count * n / total == limit == RepetitionLimits().duplicate[n - 5]
    only_this = off(duplicate=tuple(limit if m == n else 1.0 for m in range(5, 11)))
    assert repetition(duplicate_text(n, count, total), only_this) is None
    shorter = duplicate_text(n, count, total - 1)
    assert reason(repetition(shorter, only_this)) == f"duplicate_{n}_gram"


def test_each_rule_is_reached_with_all_thresholds_in_place():
    """Each rule in order, with a text that passes all rules before it."""
    assert repetition(" ".join(words(500))) is None
    assert reason(repetition("\n".join(units(10, 4)))) == "duplicate_lines"
    assert reason(repetition(top_text(2, 12, 119))) == "top_2_gram"
    assert reason(repetition(top_text(3, 12, 199))) == "top_3_gram"
    assert reason(repetition(top_text(4, 12, 299))) == "top_4_gram"
    assert reason(repetition(duplicate_text(10, 1, 99))) == "duplicate_10_gram"


def test_overlapping_occurrences_count_each_character_once():
    """In "a b a b a b" + 4 words, "a b" covers 6 of 10 words.

    Of two equally frequent n-grams the longer one counts.
    """
    text = "aa bb aa bb aa bb cc dd ee ff"
    assert repetition(text, off(top=(0.6, 1, 1))) is None
    assert repetition(text, off(top=(0.599, 1, 1))) == repetition(text, off(top=(0.0, 1, 1)))
    text = "a b c xxxx yyyy d a b e xxxx yyyy f"  # 24 characters: "xxxx yyyy" covers 16
    assert repetition(text, off(top=(16 / 24, 1, 1))) is None
    assert reason(repetition(text, off(top=(15 / 24, 1, 1)))) == "top_2_gram"
    # All words but the first are in a later occurrence of the only 5-gram.
    text = " ".join(["aa"] * 20)
    assert repetition(text, off(duplicate=(19 / 20, 1, 1, 1, 1, 1))) is None
    assert reason(repetition(text, off(duplicate=(18 / 20, 1, 1, 1, 1, 1)))) == "duplicate_5_gram"


def by_definition(text, n):
    """Returns the share of characters in n-grams that occurred before, by a simple loop."""
    every, seen, covered = text.split(), set(), set()
    for start in range(len(every) - n + 1):
        ngram = tuple(every[start : start + n])
        covered |= set(range(start, start + n)) if ngram in seen else set()
        seen.add(ngram)
    return sum(len(every[position]) for position in covered) / sum(map(len, every))


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), min_size=5, max_size=60), st.integers(5, 10))
def test_duplicate_ngrams_are_those_of_the_definition(every, n):
    text = " ".join(every)
    share = by_definition(text, n)
    limits = off(duplicate=tuple(share if m == n else 1.0 for m in range(5, 11)))
    assert repetition(text, limits) is None
    if share:
        below = off(duplicate=tuple(share - 1e-9 if m == n else 1.0 for m in range(5, 11)))
        assert reason(repetition(text, below)) == f"duplicate_{n}_gram"


def top_by_definition(text, n):
    """Returns the share of characters in the most frequent n-gram, in the longest one of several.

    A set, with one share for each n-gram of that frequency and length.
    """
    every = text.split()
    starts = {}
    for start in range(len(every) - n + 1):
        starts.setdefault(tuple(every[start : start + n]), []).append(start)
    found = [
        (len(where), len("".join(ngram)), where)
        for ngram, where in starts.items()
        if len(where) > 1
    ]
    most = max((frequency, size) for frequency, size, _ in found) if found else None
    tops = [where for frequency, size, where in found if (frequency, size) == most]
    covered = [{start + offset for start in where for offset in range(n)} for where in tops]
    return {sum(len(every[position]) for position in of) / sum(map(len, every)) for of in covered}


@given(
    st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), min_size=5, max_size=60),
    st.integers(2, 4),
)
def test_top_ngrams_are_those_of_the_definition(every, n):
    text = " ".join(every)
    # N-grams of equal frequency and length can overlap themselves differently.
    shares = top_by_definition(text, n)
    if shares:
        assert repetition(text, only_top(n, max(shares))) is None
        assert reason(repetition(text, only_top(n, min(shares) - 1e-9))) == f"top_{n}_gram"
    else:
        assert repetition(text, only_top(n, 0.0)) is None


@given(st.text(st.characters(exclude_categories=())), st.integers(1, 60))
def test_any_text_is_judged(text, times):
    for judged in (text, text * times, " ".join([text] * times), "\n\n".join([text] * times)):
        for found in (quality(judged, QualityLimits(min_words=1)), repetition(judged)):
            assert found is None or (found.unit == "record" and not found.broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a" * 1_000_000, None),
        ("1" * 1_000_000, None),
        ("ab " * 300_000, "top_2_gram"),
        ("x y z\n" * 200_000, "duplicate_lines"),
        ("\n" * 3_000_000, None),
        (" " * 10_000_000 + "a", None),
        ("\n \n" * 500_000 + "a", None),
        ("- \n" * 500_000, "duplicate_lines"),
    ],
)
def test_pathological_texts(text, expected):
    assert reason(quality(text)) in ("too_few_words", "too_many_words", "mean_word_length")
    assert reason(repetition(text)) == expected


def test_many_words_need_work_in_proportion(monkeypatch):
    """For twice the words, about twice as many n-grams are sorted, in any repetitive text."""
    sizes = []
    argsort = filters.np.argsort

    def counting(keys, **options):
        sizes.append(len(keys))
        return argsort(keys, **options)

    monkeypatch.setattr(filters.np, "argsort", counting)
    work = []
    for count in (2_000, 4_000):
        sizes.clear()
        assert repetition(" ".join(["ab", "cd"] * (count // 2)), off()) is None
        work.append(sum(sizes))
    assert 1.9 < work[1] / work[0] < 2.1
    sizes.clear()
    assert repetition(" ".join(words(4_000))) is None
    assert sum(sizes) == 0
