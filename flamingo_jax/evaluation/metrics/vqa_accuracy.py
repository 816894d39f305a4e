"""VQA accuracy of VQAv2, VizWiz and TextVQA.

It is computed as in the official script (GT-Vision-Lab/VQA, vqaEval.py). An answer is fully right
if at least three annotators gave it: the accuracy is the mean of min(1, matches / 3) over the ten
ways to leave one annotator out. The script has oddities that change scores. They are kept, and
tested against the script:

- Answers are normalised only where the annotators disagree. If all ten agree, the prediction must
  be the same string.
- One "digit,comma,digit" in an answer removes all of its punctuation marks; otherwise a mark
  becomes a space.
- The look-behind for full stops is mistyped and does nothing: each full stop without a digit after
  it is removed, also the one in "3.m".
- A flag is passed as the count, so only the first 32 full stops are removed.

Predictions are strings of Unicode, as in the script under Python 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = int(re.UNICODE)  # the flag that the script passes as the count
_ARTICLES = ("a", "an", "the")
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
# The contractions that the script repairs; it recognises them without one apostrophe (see
# `_contractions`).
_SHORT = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
    how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've
    o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll
    someone's something'd something'll that's there'd there're there's they'd they'll they're
    they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd
    you'll you're you've
""".split()
_LONG = """
    couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've
    somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've
    y'all'll y'all'd've you'd've
""".split()


def _contractions() -> dict[str, str]:
    """Returns {misspelt: correct}.

    "couldnt" -> "couldn't", "couldnt've" and "couldn'tve" -> "couldn't've".
    """
    found = {word.replace("'", ""): word for word in _SHORT}
    for word in _LONG:
        found |= {
            word[:at] + word[at + 1 :]: word for at, letter in enumerate(word) if letter == "'"
        }
    del found["somebody'dve"], found["somebodyd've"]
    return found | {
        "somebody'dve": "somebody'd've",
        "somebodyd've": "somebody'd've",
        "somebody'd": "somebodyd",
    }


_CONTRACTIONS = _contractions()


def normalise(answer: str) -> str:
    """Removes punctuation, articles and capitals; writes digits and correct contractions."""
    text = answer
    vanish = _NUMBER_WITH_COMMA.search(answer) is not None
    for mark in _MARKS:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanish or beside_space else " ")
    words = _FULL_STOP.sub("", text, count=_MOST_FULL_STOPS).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, annotated: Sequence[str]) -> float:
    """Returns the accuracy of one answer, 0..1.

    Args:
        answer: the model's answer.
        annotated: the answer of each annotator.
    """
    answer, *annotated = (
        text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *annotated)
    )
    if len(set(annotated)) > 1:
        answer, *annotated = map(normalise, (answer, *annotated))
    matches = annotated.count(answer)
    left = (min(1.0, (matches - (one == answer)) / 3) for one in annotated)
    return sum(left) / len(annotated)


def decoded_texts(answers: Sequence[Answer], metric: str) -> list[str]:
    """Returns the decoded text of each answer.

    Raises:
        HiddenAnswersError: no answer has references.
        ValueError: nothing was decoded, or there are no answers.
    """
    texts = [required.decoded(each, metric) for each in answers]
    if texts and not any(each.episode.references for each in answers):
        raise required.HiddenAnswersError(
            f"{metric}: the answers of this split are not public. Write the predictions with "
            "metrics.submission.write and upload the file to the benchmark's evaluation server, "
            "or evaluate a split with answers."
        )
    return texts


def vqa_accuracy(answers: Sequence[Answer]) -> float:
    """Returns the mean accuracy, 0..1.

    Reads `text`, and `references`: each annotator's answer as annotated, with repetitions.

    Raises:
        HiddenAnswersError: no answer has references (test-dev).
        ValueError: there are no answers, nothing was decoded, or some references are missing.
    """
    texts = decoded_texts(answers, "vqa_accuracy")
    values = [
        accuracy(text, required.references(each, "vqa_accuracy"))
        for text, each in zip(texts, answers, strict=True)
    ]
    return required.mean(values, "vqa_accuracy")


VQA_ACCURACY = Metric(
    name="vqa_accuracy", value=vqa_accuracy, needs="generation", unit=Unit("VQA accuracy, %")
)
