"""VQA accuracy of OK-VQA: the official VQA code on stemmed answers.

The annotations hold each answer as it was given (`raw_answer`) and stemmed (`answer`: "riding
horses" -> "ride horse"); the official code compares with the stemmed ones, so that a prediction
must be stemmed as they were. The stemmer was not published. Here a word of the prediction becomes

    what the annotators' own stem of it is, if the word is in a raw answer to the same question;
    else, of a word in -ing, the verb's base form; of a plural, the singular: by WordNet.

Differs from OpenFlamingo, which looks words up in a table made from all annotations, and tells
plurals by a tagger: words that no annotator of the question used may be stemmed differently.
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
    """Word -> stem, from answers that have as many words stemmed as raw."""
    pairs = [(one.split(), other.split()) for one, other in zip(raw, stemmed, strict=True)]
    return {
        word: stem
        for words, stems in pairs
        if len(words) == len(stems)
        for word, stem in zip(words, stems, strict=True)
    }


def stem_word(word: str, known: Mapping[str, str]) -> str:
    """The stem of one word."""
    if word in known:
        return known[word]
    lower = stemmed = word.lower()
    if lower.endswith("ing"):
        stemmed = wordnet.load().shortest(lower, "v")
    elif lower.endswith("s") and not lower.endswith("ss"):
        stemmed = wordnet.load().shortest(lower, "n")
        stemmed = stemmed if len(stemmed) >= _SHORTEST_SINGULAR else lower
    # Where all annotators agree, the official code compares capitals too.
    return word if stemmed == lower else stemmed.capitalize() if word[0].isupper() else stemmed


def stem(text: str, known: Mapping[str, str]) -> str:
    """The text with its words stemmed, all else as it was.

    Args:
        text: an answer.
        known: the stems that the annotations show.

    Raises:
        MissingResourceError: WordNet is not installed.
    """
    return _WORD.sub(lambda found: stem_word(found[0], known), text)


def okvqa_accuracy(predictions: Sequence[Answer]) -> float:
    """The mean accuracy, 0..1.

    Reads `text`; `references`: the field `answer` of each annotator; and, if it is there,
    `extra["raw_answers"]`: the field `raw_answer`, in the same order.

    Raises:
        MissingResourceError: WordNet is not installed.
        HiddenAnswersError: no prediction has references.
        ValueError: there are no predictions, nothing was decoded, or references are missing or not
            as many as raw answers.
    """
    values = []
    for text, each in zip(
        vqa_accuracy.answers(predictions, "okvqa_accuracy"), predictions, strict=True
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
