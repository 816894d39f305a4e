"""Reads WordNet 3.0 from the files that Debian's package wordnet-base installs.

It gives base forms of words, and Wu-Palmer similarity. The results equal those of NLTK with its own
copy of WordNet 3.0 (`synsets`, `_morphy`, `wup_similarity`), which official scripts use. The
formats are those of the manual pages wndb(5) and morphy(7).

Not read by NLTK's WordNetCorpusReader: it refuses Debian's directory, which lacks the file lexnames
and is outside NLTK's data.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

from etils import epath

from flamingo_jax.core.paths import regular
from flamingo_jax.evaluation.metrics.required import MissingResourceError

DIRECTORY = "/usr/share/wordnet"
_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# Endings and their replacements in a base form, in the order in which they are tried: morphy(7).
_DETACHMENTS = {
    "n": ("s:", "ses:s", "ves:f", "xes:x", "zes:z", "ches:ch", "shes:sh", "men:man", "ies:y"),
    "v": ("s:", "ies:y", "es:e", "es:", "ed:e", "ed:", "ing:e", "ing:"),
    "a": ("er:", "est:", "er:e", "est:e"),
    "r": (),
}


@dataclasses.dataclass(frozen=True)
class Synset:
    """A sense: words with the same meaning.

    Attributes:
        pos: part of speech: n, v, a, r, or s for an adjective that belongs to another one.
        offset: place of the sense in the file of its part of speech.
        word: first word of the sense.
        above: offsets of the senses that this one is a kind or an instance of.
    """

    pos: str
    offset: int
    word: str
    above: tuple[int, ...]


class WordNet:
    """The database of a directory.

    Raises:
        MissingResourceError: a file of the database is missing.
    """

    def __init__(self, directory: str = DIRECTORY) -> None:
        root = epath.Path(directory)
        names = [
            name
            for file in _FILES.values()
            for name in (f"index.{file}", f"data.{file}", f"{file}.exc")
        ]
        for name in names:
            if not (root / name).exists():
                raise MissingResourceError(
                    f"WordNet's file {name} is not in {directory}. On Debian or Ubuntu: apt-get "
                    "install wordnet-base."
                )
        # There are 270,000 lines: each is parsed when it is needed.
        self._index: dict[str, dict[str, str]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        self._data: dict[str, bytes] = {}
        for pos, file in _FILES.items():
            lines = regular(root / f"index.{file}").read_text(encoding="utf-8").splitlines()
            self._index[pos] = {
                line[: line.index(" ")]: line for line in lines if not line.startswith(" ")
            }
            self._data[pos] = regular(root / f"data.{file}").read_bytes()
            words = map(
                str.split, regular(root / f"{file}.exc").read_text(encoding="utf-8").splitlines()
            )
            self._exceptions[pos] = {each[0]: each[1:] for each in words if each}
        self._synsets: dict[tuple[str, int], Synset] = {}

    def base_forms(self, word: str, pos: str) -> list[str]:
        """Returns the words of a part of speech that `word` can be a form of, `word` first."""
        if word in self._exceptions[pos]:
            return _among([word, *self._exceptions[pos][word]], self._index[pos])
        endings = [ending.split(":") for ending in _DETACHMENTS[pos]]
        forms, itself = [word], [word]
        while forms:
            forms = [
                form[: -len(old)] + new
                for form in forms
                for old, new in endings
                if form.endswith(old)
            ]
            if found := _among([*itself, *forms], self._index[pos]):
                return found
            itself = []
        return []

    def shortest(self, word: str, pos: str) -> str:
        """Returns the shortest base form; the word itself if it has no base form."""
        return min(self.base_forms(word, pos), key=len, default=word)

    def synsets(self, word: str) -> list[Synset]:
        """Returns the senses of a word as a noun, then as a verb, adjective and adverb.

        The senses of each part of speech have the most frequent first.
        """
        word = word.lower()
        return [
            self._synset(pos, offset)
            for pos in _FILES
            for form in self.base_forms(word, pos)
            for offset in _offsets(self._index[pos][form])
        ]

    def similarity(self, one: Synset, other: Synset) -> float:
        """Returns the Wu-Palmer similarity, 0..1.

        It is twice the depth of the lowest sense above both, divided by the sum of both depths by
        way of this sense. Verbs, adjectives and adverbs have many roots: an imaginary root joins
        them. The similarity of two nouns without a common sense above them is 0.
        """
        join = not one.pos == other.pos == "n"
        mine, theirs = self._distances(one, join), self._distances(other, join)
        common = [sense for sense in mine if sense in theirs]
        if not common:
            return 0.0
        deepest = max(map(self._min_depth, common))
        lowest = [sense for sense in common if self._min_depth(sense) == deepest]
        # If there are several, the first by NLTK's name.
        through = one if one in lowest else min(lowest, key=self._name)
        depth = self._max_depth(through) + 1
        above = self._distances(through, join)
        both = sum(
            min(
                (near + above[sense] for sense, near in distances.items() if sense in above),
                default=0,
            )
            for distances in (mine, theirs)
        )
        return 2 * depth / (both + 2 * depth)

    def _synset(self, pos: str, offset: int) -> Synset:
        if (pos, offset) not in self._synsets:
            data = self._data[pos]
            self._synsets[pos, offset] = _read_synset(
                data[offset : data.index(b"\n", offset)].decode()
            )
        return self._synsets[pos, offset]

    def _above(self, sense: Synset | None) -> list[Synset]:
        pos = "a" if sense and sense.pos == "s" else sense.pos if sense else ""
        return [self._synset(pos, offset) for offset in sense.above] if sense else []

    def _distances(self, sense: Synset | None, join: bool) -> Mapping[Synset | None, int]:
        """Returns the steps up to each sense above this one, with itself; None is the root."""
        steps: dict[Synset | None, int] = {}
        queue = collections.deque([(sense, 0)])
        while queue:
            here, distance = queue.popleft()
            if here not in steps:
                steps[here] = distance
                queue.extend((higher, distance + 1) for higher in self._above(here))
        if join and sense is not None:
            steps[None] = max(steps.values()) + 1
        return steps

    def _min_depth(self, sense: Synset | None) -> int:
        return min((1 + self._min_depth(higher) for higher in self._above(sense)), default=0)

    def _max_depth(self, sense: Synset | None) -> int:
        return max((1 + self._max_depth(higher) for higher in self._above(sense)), default=0)

    def _name(self, sense: Synset | None) -> str:
        if sense is None:
            return "*ROOT*"
        senses = _offsets(self._index["a" if sense.pos == "s" else sense.pos][sense.word.lower()])
        return f"{sense.word.lower()}.{sense.pos}.{senses.index(sense.offset) + 1:02d}"


def _among(forms: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """Returns the forms that are known, without repetitions."""
    return list(dict.fromkeys(form for form in forms if form in known))


def _offsets(line: str) -> list[int]:
    """Parses a line: word pos #senses #pointers pointer... #senses #tagged offset..."""
    fields = line.split()
    return [int(field) for field in fields[6 + int(fields[3]) :]]


def _read_synset(line: str) -> Synset:
    """Parses a line: offset file pos #words (word id)... #pointers (symbol offset pos source)..."""
    fields = line.split(" | ")[0].split()
    after_words = 4 + 2 * int(fields[3], 16)
    pointers = [
        fields[at : at + 4]
        for at in range(after_words + 1, after_words + 1 + 4 * int(fields[after_words]), 4)
    ]
    above = [
        int(offset) for kind in ("@", "@i") for symbol, offset, *_ in pointers if symbol == kind
    ]
    return Synset(fields[2], int(fields[0]), fields[4].split("(")[0], tuple(above))


@functools.cache
def load(directory: str = DIRECTORY) -> WordNet:
    """Reads the database, once.

    Raises:
        MissingResourceError: it is not installed.
    """
    return WordNet(directory)


def check() -> None:
    """Raises MissingResourceError unless WordNet is installed."""
    load()
