"""WUPS of NExT-QA's open-ended answers, as the official script computes it.

The script is eval_oe.py with metrics.py in doc-doc/NExT-OE. Both answers become lists of base forms
without stop words. The value of a word is the highest Wu-Palmer similarity (of first senses) to a
word of the other answer; words with similarity 0 to all others are left out. The value of an answer
is the product over its words, in the direction with the smaller product. Answers to yes/no (DB) and
counting (DC) questions are only right or wrong. If there is a second reference answer, the better
of the two counts. The threshold is 0 ("WUPS@0", which is that of Flamingo's row in the repository's
table).

    words --NLTK's tagger--> Penn tags
          --WordNet--> the shortest base form; else the Porter stem, if WordNet has it;
                       else the word (pywsd's lemmatize_sentence)

Differs from the official script: NLTK's tokenizer splits words both times. The script uses pywsd's
copy of an older version the first time. The versions split "*", dashes of Unicode and two full
stops differently.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required, wordnet
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

# The repository's stopwords.txt, made for this benchmark: it lacks negations and some other words.
_STOP_WORDS = frozenset(
    """
    a about again ain all am an and any are aren aren't as at be because been being but can
    couldn couldn't d did didn didn't do does doesn doesn't doing don don't during each for from
    further had hadn hadn't has hasn hasn't have haven haven't having he her here hers herself
    him himself his how i if into is isn isn't it it's its itself just ll m ma me mightn
    mightn't most mustn mustn't my myself needn needn't now o of only or other our ours
    ourselves own re s shan shan't she she's should should've shouldn shouldn't so some such t
    than that that'll the their theirs them themselves then there these they this those through
    to too until ve very was wasn wasn't we were weren weren't what when where which while who
    whom why will with won won't wouldn wouldn't y you you'd you'll you're you've your yours
    yourself yourselves
""".split()
)
_PARTS = {"NN": "n", "JJ": "a", "VB": "v", "RB": "r"}
# No other mark between: starting at each mark of a word would take time that grows with the square.
_INNER_SENTENCE_END = re.compile(r"[.?!][^\s.?!]*\s+\S")
_EXACT = ("DB", "DC")
Tagger = Callable[[Sequence[str]], Sequence[tuple[str, str]]]


@functools.cache
def tagger() -> Tagger:
    """Returns NLTK's tagger of parts of speech: words -> (word, Penn tag); reads it once.

    Raises:
        MissingResourceError: NLTK or the tagger's weights are missing.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger

        return PerceptronTagger().tag
    except (ImportError, LookupError) as error:
        raise _missing() from error


def check() -> None:
    """Raises MissingResourceError unless NLTK, its data and WordNet are installed."""
    tagger()
    wordnet.check()
    sentences("One. Two.")


def _missing() -> required.MissingResourceError:
    return required.MissingResourceError(
        "WUPS needs the package nltk and its data: pip install 'flamingo_jax[evaluation]', then "
        "python -m nltk.downloader averaged_perceptron_tagger_eng punkt_tab (NLTK_DATA names the "
        "directory where they are stored)."
    )


def sentences(text: str) -> list[str]:
    """Splits a text into sentences.

    NLTK's splitter needs data, so it is used only for texts with a mark that can end a sentence
    before the end.

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
    """Splits a text into words and punctuation marks."""
    from nltk.tokenize import NLTKWordTokenizer

    return [word for sentence in sentences(text) for word in NLTKWordTokenizer().tokenize(sentence)]


def _part(tag: str) -> str:
    """Returns WordNet's part of speech for a Penn tag; "" if there is no such part."""
    return _PARTS.get(tag[:2], "")


def _base(word: str, tag: str, tag_words: Tagger) -> str:
    """Returns the base form of a word that is tagged in its sentence.

    If WordNet lacks the tag's part of speech, the word is tagged again without its sentence; if
    that fails too, it is taken as a noun.
    """
    from nltk.stem import PorterStemmer

    net = wordnet.load()
    lemma = net.shortest(word, _part(tag) or _part(tag_words([word])[0][1]) or "n")
    if net.synsets(lemma):
        return lemma
    stem = PorterStemmer().stem(word)
    return stem if net.synsets(stem) else word


def content(answer: str) -> str:
    """Returns the base forms of an answer's words, without stop words, joined by spaces.

    Raises:
        MissingResourceError: NLTK, its data or WordNet is missing.
    """
    tag_words = tagger()
    bases = [_base(word.lower(), tag, tag_words) for word, tag in tag_words(_words(answer))]
    return " ".join(word for word in bases if word not in _STOP_WORDS)


@functools.cache
def _similarity(one: str, other: str) -> float:
    """Returns the Wu-Palmer similarity of the first senses of two words."""
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
    """Returns the similarity of an answer and a reference, 0..1.

    Args:
        answer, reference: what `content` returned.
        exact: True for 1 if they are equal, else 0.
    """
    if exact:
        return float(answer == reference)
    words, others = _words(answer), _words(reference)
    return min(_one_way(words, others), _one_way(others, words))


def wups(answers: Sequence[Answer]) -> float:
    """Returns the mean WUPS@0, 0..1.

    Reads `text`, `answer`, and `extra`: "question_type" (the column `type`: CW, CH, TN, TP, TC, DL,
    DB, DC, DO) and, if it exists and is not None, "additional": the answer of
    add_reference_answer_test.json.

    Raises:
        MissingResourceError: NLTK, its data or WordNet is missing.
        ValueError: there are no answers, nothing was decoded, or the type of question is
            missing.
    """
    values = []
    for each in answers:
        answer = required.decoded(each, "wups")
        exact = required.extra(each, "wups", "question_type") in _EXACT
        both = (each.episode.answer, each.episode.extra.get("additional"))
        references = [content(reference) for reference in both if reference is not None]
        said = content(answer)
        values.append(max(similarity(said, reference, exact=exact) for reference in references))
    return required.mean(values, "wups")


WUPS = Metric(name="wups", value=wups, needs="generation", unit=Unit("WUPS x 100"), check=check)
