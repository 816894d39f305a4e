"""Exact match of open-ended answers: the text before `<EOC>` equals the answer.

Some models do not write `<EOC>` and go on with the next example of the prompt: "We therefore trim
the prediction to the text preceding the prompt keywords before quantitative evaluation" (first
version of the paper, section 4.4.1). All metrics of text do so.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def normalise(text: str) -> str:
    """Returns the text in lower case, with single spaces and without its final full stop."""
    return " ".join(text.lower().split()).rstrip(" .")


def is_exact(answer: Answer) -> bool:
    """Returns True if the decoded text is the answer, after normalising both.

    Raises:
        ValueError: nothing was decoded for this episode.
    """
    return normalise(required.decoded(answer, "exact_match")) == normalise(answer.episode.answer)


def exact_match(answers: Sequence[Answer]) -> float:
    """Returns the fraction of exact answers, after normalising.

    Raises:
        ValueError: there are no answers, or nothing was decoded.
    """
    return required.mean([is_exact(each) for each in answers], "exact_match")


def top1(answers: Sequence[Answer]) -> float:
    """Returns the fraction of answers that equal the annotated string (MSVD-QA, MSRVTT-QA).

    The official code compares entries of an answer vocabulary, all in lower case. Here a decoded
    text is only put in lower case and loses outer and double spaces.

    Raises:
        ValueError: there are no answers, or nothing was decoded.
    """
    texts = [" ".join(required.decoded(each, "top1").lower().split()) for each in answers]
    expected = [each.episode.answer for each in answers]
    return required.mean([a == b for a, b in zip(texts, expected, strict=True)], "top1")


EXACT_MATCH = Metric(
    name="exact_match",
    value=exact_match,
    needs="generation",
    unit=Unit("exact match, %"),
    plain_unit=Unit("exact match", factor=1.0, decimals=2),
)
TOP1 = Metric(name="top1", value=top1, needs="generation", unit=Unit("top-1 accuracy, %"))
