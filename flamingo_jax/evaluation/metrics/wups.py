"""WUPS of NExT-QA's open-ended answers, as the official script computes it (doc-doc/NExT-OE, eval_oe.py and metrics.py).

Both answers become lists of base forms without stop words. Each word is worth the highest Wu-Palmer
similarity (of first senses) to a word of the other answer; words that are like none are left out;
the product over the words, in whichever direction it is smaller. Yes/no (DB) and counting (DC)
questions are right or wrong. Where there is a second reference answer, the better of the two
counts. The threshold is 0 ("WUPS@0", the table of that repository in which Flamingo stands).

    words --NLTK's tagger--> Penn tags --WordNet--> shortest base form; else the Porter stem if WordNet has it; else the word      (pywsd's lemmatize_sentence)

Differs from the official script: words are split by NLTK's tokenizer both times, where pywsd has a
copy of an older version of it; they differ in how they split "*", dashes of Unicode and two full
stops.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required, wordnet
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

# The repository's stopwords.txt, which is made for this benchmark: negations and some more are not
# among them.
_STOP_WORDS = frozenset(
    """a about again ain all am an and any are aren aren't as at be because been being but can couldn couldn't d did didn didn't do does doesn doesn't doing
don don't during each for from further had hadn hadn't has hasn hasn't have haven haven't having he her here hers herself him himself his how i if
into is isn isn't it it's its itself just ll m ma me mightn mightn't most mustn mustn't my myself needn needn't now o of only or other our ours
ourselves own re s shan shan't she she's should should've shouldn shouldn't so some such t than that that'll the their theirs them themselves then
there these they this those through to too until ve very was wasn wasn't we were weren weren't what when where which while who whom why will with won
won't wouldn wouldn't y you you'd you'll you're you've your yours yourself yourselves""".split()
)
_PARTS = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}
_INNER_SENTENCE_END = re.compile(r"[.?!]\S*\s+\S")
_EXACT = ("DB", "DC")
Tagger = Callable[[Sequence[str]], Sequence[tuple[str, str]]]


@functools.cache
def tagger() -> Tagger:
    """NLTK's tagger of parts of speech: words -> (word, Penn tag), read once.

    Raises:
        MissingResourceError: NLTK or the tagger's weights are missing.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger

        return PerceptronTagger().tag
    except (ImportError, LookupError) as error:
        raise _missing() from error


def check() -> None:
    """Raises MissingResourceError unless NLTK, its data and WordNet are there."""
    tagger()
    wordnet.check()
    sentences("One. Two.")


def _missing() -> required.MissingResourceError:
    return required.MissingResourceError(
        "WUPS needs the package nltk and its data: pip install 'flamingo_jax[evaluation]', then "
        "python -m nltk.downloader averaged_perceptron_tagger_eng punkt_tab (NLTK_DATA names the "
        "directory where they lie)."
    )


def sentences(text: str) -> list[str]:
    """The text in sentences.

    NLTK's splitter needs data, and has something to split only after a mark that can end a
    sentence.

    Raises:
        MissingResourceError: NLTK or the splitter's data are missing.
    """
    if not _INNER_SENTENCE_END.search(text):
        return [text]
    try:
        from nltk.tokenize import sent_tokenize

        return sent_tokenize(text)
    except (ImportError, LookupError) as error:
        raise _missing() from error


def _words(text: str) -> list[str]:
    """The text in words and punctuation marks."""
    from nltk.tokenize import NLTKWordTokenizer

    return [word for sentence in sentences(text) for word in NLTKWordTokenizer().tokenize(sentence)]


def _part(tag: str) -> str:
    """WordNet's part of speech of a Penn tag; "" if it has none."""
    return _PARTS.get(tag[:2], "")


def _base(word: str, tag: str, tag_words: Tagger) -> str:
    """The base form of a word that is tagged in its sentence.

    A word of another part of speech is tagged again by itself, else is a noun.
    """
    from nltk.stem import PorterStemmer

    net = wordnet.load()
    lemma = net.shortest(word, _part(tag) or _part(tag_words([word])[0][1]) or "n")
    if net.synsets(lemma):
        return lemma
    stem = PorterStemmer().stem(word)
    return stem if net.synsets(stem) else word


def content(answer: str) -> str:
    """The base forms of an answer's words but for stop words, with spaces between.

    Raises:
        MissingResourceError: NLTK, its data or WordNet is missing.
    """
    tag_words = tagger()
    bases = [_base(word.lower(), tag, tag_words) for word, tag in tag_words(_words(answer))]
    return " ".join(word for word in bases if word not in _STOP_WORDS)


@functools.cache
def _similarity(one: str, other: str) -> float:
    """Wu-Palmer similarity of two words' first senses."""
    if one == other:
        return 1.0
    net = wordnet.load()
    senses = [net.synsets(word)[:1] for word in (one, other)]
    return net.similarity(senses[0][0], senses[1][0]) if all(senses) else 0.0


def _one_way(words: Sequence[str], others: Sequence[str]) -> float:
    nearest = [max((_similarity(word, other) for other in others), default=0.0) for word in words]
    matched = [value for value in nearest if value]
    return math.prod(matched) if matched else 0.0


def similarity(answer: str, reference: str, *, exact: bool) -> float:
    """How near an answer is to a reference, 0..1.

    Args:
        answer, reference: as `content` gives them.
        exact: they must be equal.
    """
    if exact:
        return float(answer == reference)
    words, others = _words(answer), _words(reference)
    return min(_one_way(words, others), _one_way(others, words))


def wups(predictions: Sequence[Answer]) -> float:
    """The mean WUPS@0, 0..1.

    Reads `text`, `answer`, and `extra`: "question_type" (the column `type`: CW, CH, TN, TP, TC, DL,
    DB, DC, DO) and, if it is there and not None, "additional": the answer of
    add_reference_answer_test.json.

    Raises:
        MissingResourceError: NLTK, its data or WordNet is missing.
        ValueError: there are no predictions, nothing was decoded, or the type of question is
            missing.
    """
    values = []
    for each in predictions:
        answer = required.decoded(each, "wups")
        exact = required.extra(each, "wups", "question_type") in _EXACT
        wanted = [each.episode.answer] + [
            other for other in (each.episode.extra.get("additional"),) if other is not None
        ]
        said = content(answer)
        values.append(
            max(similarity(said, content(reference), exact=exact) for reference in wanted)
        )
    return required.mean(values, "wups")


WUPS = Metric(name="wups", value=wups, needs="generation", unit=Unit("WUPS x 100"), check=check)
