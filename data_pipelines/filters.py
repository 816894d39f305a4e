"""The quality and repetition filters of Gopher (its appendix A, Table A1).

M3W's "similar text filtering heuristics" refer to them.

    text  --quality-->  None | Reject  --repetition-->  None | Reject

Both are pure functions of a text. Each rule has its reason, and the first rule that the text breaks
gives the reason. A value at a threshold passes. The cost is O(words log words) for any text;
`quality`, which comes first, reads no more than `max_words` words.

The papers leave some questions open, and other implementations answer them differently. Here:
- A word is what is between white space, including its punctuation. A line ends at any line break of
  Unicode. White space around a line does not count, and neither do blank lines. A paragraph ends at
  a blank line.
- Stop words are compared without case and without the punctuation around a word. Two different ones
  are required.
- A duplicate is any occurrence after the first: of three equal lines two are duplicates.
- Fractions of characters count the characters of words (or of lines, for duplicate lines), not the
  white space between them. A character counts once, however many duplicate n-grams contain it.
  (Others count duplicate n-grams from left to right without overlap, which gives at most this.)
- The top n-gram is the most frequent one, and the longest one of several. All its occurrences
  count. An n-gram that occurs once is not a top n-gram.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.page import Reject

BULLETS = ("-", "*", "•", "‣", "◦", "▪", "●", "·", "–")
ELLIPSES = ("...", "…")
_AROUND_WORDS = ".,;:!?\"'()[]{}<>“”‘’«»*_-–—…"


@dataclasses.dataclass(frozen=True)
class QualityLimits:
    """Thresholds of the quality filter.

    Attributes:
      min_words: smallest number of words.
      max_words: largest number of words.
      min_word_length: smallest mean length of the words, in characters.
      max_word_length: largest mean length of the words, in characters.
      max_symbols: largest number of "#" per word, and of ellipses per word.
      max_bullets: largest share of lines that start with a bullet.
      max_ellipses: largest share of lines that end with an ellipsis.
      min_alphabetic: smallest share of words that contain a letter.
      min_stop_words: smallest number of different stop words in the text.
      stop_words: English words that almost every text contains.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbols: float = 0.1
    max_bullets: float = 0.9
    max_ellipses: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    stop_words: frozenset[str] = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


@dataclasses.dataclass(frozen=True)
class RepetitionLimits:
    """Thresholds of the repetition filter, each a share of all lines, paragraphs or characters.

    Attributes:
      lines: lines that are duplicates.
      paragraphs: paragraphs that are duplicates.
      line_characters: characters in duplicate lines.
      paragraph_characters: characters in duplicate paragraphs.
      top: characters in the top n-gram, for n = 2, 3, 4.
      duplicate: characters in duplicate n-grams, for n = 5 to 10.
    """

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top: tuple[float, float, float] = (0.20, 0.18, 0.16)
    duplicate: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)


_QUALITY, _REPETITION = QualityLimits(), RepetitionLimits()


def quality(text: str, limits: QualityLimits = _QUALITY) -> Reject | None:
    """Returns None for a text that looks like prose, else why it does not.

    Args:
      text: any text; an empty one has too few words.
      limits: the thresholds.

    Returns:
      None, or a Reject for too_few_words, too_many_words, mean_word_length, symbols, bullets,
      ellipses, alphabetic or stop_words.
    """
    words = text.split(None, limits.max_words)  # the last one contains all text beyond the limit
    count = len(words)
    if count < limits.min_words or not words:
        return Reject("too_few_words", f"{count}")
    if count > limits.max_words:
        return Reject("too_many_words", f"more than {limits.max_words}")
    mean = sum(map(len, words)) / count
    if not limits.min_word_length <= mean <= limits.max_word_length:
        return Reject("mean_word_length", f"{mean:.2f} characters")
    for symbols in (("#",), ELLIPSES):
        if (per_word := sum(map(text.count, symbols)) / count) > limits.max_symbols:
            return Reject("symbols", f"{per_word:.3f} {symbols[0]!r} per word")
    lines = _lines(text)
    if (share := sum(line.startswith(BULLETS) for line in lines) / len(lines)) > limits.max_bullets:
        return Reject("bullets", f"{share:.3f} of the lines")
    if (share := sum(line.endswith(ELLIPSES) for line in lines) / len(lines)) > limits.max_ellipses:
        return Reject("ellipses", f"{share:.3f} of the lines")
    if (share := _num_alphabetic(words) / count) < limits.min_alphabetic:
        return Reject("alphabetic", f"{share:.3f} of the words")
    if (found := _num_stop_words(words, limits)) < limits.min_stop_words:
        return Reject("stop_words", f"{found}")
    return None


def repetition(text: str, limits: RepetitionLimits = _REPETITION) -> Reject | None:
    """Returns None for a text that repeats little, else why it repeats too much.

    Args:
      text: any text; an empty one repeats nothing.
      limits: the thresholds.

    Returns:
      None, or a Reject for duplicate_lines, duplicate_paragraphs, duplicate_line_characters,
      duplicate_paragraph_characters, top_2_gram to top_4_gram, or duplicate_5_gram to
      duplicate_10_gram.
    """
    lines = _lines(text)
    if not lines:
        return None
    paragraphs = _paragraphs(text)
    shares = (_duplicates(lines), _duplicates(paragraphs))
    for (share, _), limit, name in zip(
        shares, (limits.lines, limits.paragraphs), ("lines", "paragraphs"), strict=True
    ):
        if share > limit:
            return Reject(f"duplicate_{name}", f"{share:.3f} of the {name}")
    character_limits = (limits.line_characters, limits.paragraph_characters)
    for (_, share), limit, name in zip(
        shares, character_limits, ("line", "paragraph"), strict=True
    ):
        if share > limit:
            return Reject(f"duplicate_{name}_characters", f"{share:.3f} of the characters")
    words = text.split()
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    total = int(lengths.sum())
    first_duplicate = 2 + len(limits.top)
    most = first_duplicate + len(limits.duplicate) - 1
    for n, (starts, later) in enumerate(_repeated_ngrams(words, most), 2):
        if n < first_duplicate:
            characters, limit = _top(starts, later, n, lengths), limits.top[n - 2]
            reason = f"top_{n}_gram"
        else:
            characters = _covered(starts[later], n, lengths)
            limit, reason = limits.duplicate[n - first_duplicate], f"duplicate_{n}_gram"
        if (share := characters / total) > limit:
            return Reject(reason, f"{share:.3f} of the characters")
    return None


def _lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if line]


def _paragraphs(text: str) -> list[str]:
    lines = map(str.strip, text.splitlines())
    return ["\n".join(group) for has_text, group in itertools.groupby(lines, bool) if has_text]


def _num_alphabetic(words: Sequence[str]) -> int:
    """Returns the number of words that contain a letter."""
    # Only the words with other characters, which are few, are checked letter by letter.
    others = [word for word in words if not word.isalpha()]
    return len(words) - len(others) + sum(any(map(str.isalpha, word)) for word in others)


def _num_stop_words(words: Sequence[str], limits: QualityLimits) -> int:
    found = len(limits.stop_words.intersection(words))
    if found >= limits.min_stop_words:  # as in most texts, so that not every word is cleaned
        return found
    return len(limits.stop_words.intersection(word.strip(_AROUND_WORDS).lower() for word in words))


def _duplicates(units: Sequence[str]) -> tuple[float, float]:
    """Returns two shares of duplicate lines or paragraphs: of the number, and of the characters."""
    distinct = set(units)
    characters = sum(map(len, units))
    duplicate_characters = characters - sum(map(len, distinct))
    return (len(units) - len(distinct)) / len(units), duplicate_characters / characters


def _repeated_ngrams(words: Sequence[str], most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Finds the n-grams that occur more than once, for n = 2, 3, ... `most`.

    Yields their starts, int64[R], and whether each is a later occurrence, bool[R]. The occurrences
    of one n-gram are adjacent, in the order of the text. Ends at the first n without a repeated
    n-gram.

    Exact, without hashing: an n-gram is the pair of the number of its first (n-1)-gram and the
    number of its last word. It can be repeated only where both its (n-1)-grams are, so a text that
    repeats little is finished early.
    """
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    word_number = np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))
    number = word_number.copy()  # of the (n-1)-gram that starts here; -1 = it occurs once
    number[np.bincount(word_number)[word_number] == 1] = -1
    for n in range(2, most + 1):
        starts = np.flatnonzero((number[:-1] >= 0) & (number[1:] >= 0))
        starts = starts[starts + n <= len(words)]
        pairs = number[starts] * len(numbers) + word_number[starts + n - 1]
        order = np.argsort(pairs, kind="stable")
        starts, pairs = starts[order], pairs[order]
        # True where an n-gram equals the one before it; False at both ends.
        later = np.zeros(len(pairs) + 1, bool)
        later[1:-1] = pairs[1:] == pairs[:-1]
        repeated = later[:-1] | later[1:]
        starts, later = starts[repeated], later[:-1][repeated]
        if not len(starts):
            return
        number = np.full(len(words), -1, np.int64)
        number[starts] = np.cumsum(~later)
        yield starts, later


def _top(starts: np.ndarray, later: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Returns the number of characters in the most frequent n-gram."""
    first = np.flatnonzero(~later)
    counts = np.diff(first, append=len(starts))
    most_frequent = first[counts == counts.max()]
    sizes = lengths[starts[most_frequent][:, None] + np.arange(n)].sum(axis=1)
    chosen = most_frequent[np.argmax(sizes)]
    return _covered(starts[chosen : chosen + counts.max()], n, lengths)


def _covered(starts: np.ndarray, n: int, lengths: np.ndarray) -> int:
    """Returns the number of characters in the n-grams that start at `starts`, each counted once."""
    change = np.zeros(len(lengths) + 1, np.int64)
    change[starts] += 1
    change[starts + n] -= 1
    return int(lengths[np.cumsum(change[:-1]) > 0].sum())
