"""VQA accuracy of OK-VQA: the official VQA code on stemmed answers.

The annotations have each answer as typed (`raw_answer`: "riding horses") and stemmed (`answer`:
"ride horse"). The official code compares with the stemmed answers, so a prediction must be stemmed
in the same way. The stemmer was not published. Here the stem of a word of the prediction is

    the annotators' stem, if the word is in a raw answer to the same question;
    else WordNet's base form of the verb (a word in -ing), or singular (a plural).

Differs from OpenFlamingo, which looks words up in a table made from all annotations, and finds
plurals with a tagger: words that no annotator of the question used may have another stem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required, vqa_accuracy, wordnet
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

_WORD = re.compile(r"\w[\w'-]*")
_SHORTEST_SINGULAR = 3  # letters: "gas" is not the plural of the element Ga


def annotated_stems(raw: Sequence[str], stemmed: Sequence[str]) -> dict[str, str]:
    """Returns {word: stem} from the answers with as many stemmed words as raw words."""
    pairs = [(one.split(), other.split()) for one, other in zip(raw, stemmed, strict=True)]
    return {
        word: stem
        for words, stems in pairs
        if len(words) == len(stems)
        for word, stem in zip(words, stems, strict=True)
    }


def stem_word(word: str, known: Mapping[str, str]) -> str:
    """Returns the stem of one word."""
    if word in known:
        return known[word]
    lower = stemmed = word.lower()
    if lower.endswith("ing"):
        stemmed = wordnet.load().shortest(lower, "v")
    elif lower.endswith("s") and not lower.endswith("ss"):
        stemmed = wordnet.load().shortest(lower, "n")
        stemmed = stemmed if len(stemmed) >= _SHORTEST_SINGULAR else lower
    # If all annotators agree, the official code compares capitals too.
    return word if stemmed == lower else stemmed.capitalize() if word[0].isupper() else stemmed


def stem(text: str, known: Mapping[str, str]) -> str:
    """Replaces each word of a text by its stem.

    Args:
        text: an answer.
        known: word -> stem, from the annotations.

    Raises:
        MissingResourceError: WordNet is not installed.
    """
    return _WORD.sub(lambda found: stem_word(found[0], known), text)


def okvqa_accuracy(answers: Sequence[Answer]) -> float:
    """Returns the mean accuracy, 0..1.

    Reads `text`; `references`: the field `answer` of each annotator; and, if it exists,
    `extra["raw_answers"]`: the field `raw_answer`, in the same order.

    Raises:
        MissingResourceError: WordNet is not installed.
        HiddenAnswersError: no answer has references.
        ValueError: there are no answers, nothing was decoded, references are missing, or there are
            more or fewer of them than raw answers.
    """
    values = []
    for text, each in zip(
        vqa_accuracy.decoded_texts(answers, "okvqa_accuracy"), answers, strict=True
    ):
        references = required.references(each, "okvqa_accuracy")
        raw = each.episode.extra.get("raw_answers", references)
        if len(raw) != len(references):
            raise ValueError(
                f"okvqa_accuracy of query {each.episode.query_id!r}: expected a raw answer for "
                f"each of {len(references)} references, got {len(raw)}."
            )
        values.append(
            vqa_accuracy.accuracy(stem(text.strip(), annotated_stems(raw, references)), references)
        )
    return required.mean(values, "okvqa_accuracy")


OKVQA_ACCURACY = Metric(
    name="okvqa_accuracy",
    value=okvqa_accuracy,
    needs="generation",
    unit=Unit("VQA accuracy, %"),
    check=wordnet.check,
)
