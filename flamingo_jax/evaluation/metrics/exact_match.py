"""Exact match of open-ended answers: the text before `<EOC>` equals the answer.

Some models fail to write `<EOC>` and go on with the next example of the prompt, "We therefore trim
the prediction to the text preceding the prompt keywords before quantitative evaluation" (first
version of the paper, section 4.4.1): so do all metrics of text.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

# the page of samples shows what was judged
from flamingo_jax.evaluation.metrics.required import trim as trim


def normalise(text: str) -> str:
    """Lower case, single spaces, no final full stop: what two equal answers may differ in."""
    return " ".join(text.lower().split()).rstrip(" .")


def is_exact(answer: Answer) -> bool:
    """Whether the decoded text is the answer, after normalising both.

    Raises:
        ValueError: nothing was decoded for this episode.
    """
    return normalise(required.decoded(answer, "exact_match")) == normalise(answer.episode.answer)


def exact_match(predictions: Sequence[Answer]) -> float:
    """The fraction of exact answers, after normalising.

    Raises:
        ValueError: there are no predictions, or nothing was decoded.
    """
    return required.mean([is_exact(each) for each in predictions], "exact_match")


def top1(predictions: Sequence[Answer]) -> float:
    """The fraction of answers that equal the one annotated string: MSVD-QA and MSRVTT-QA.

    The official code compares entries of an answer vocabulary, all in lower case; a decoded text is
    put in lower case and freed of outer and double spaces, and of nothing else.

    Raises:
        ValueError: there are no predictions, or nothing was decoded.
    """
    texts = [" ".join(required.decoded(each, "top1").lower().split()) for each in predictions]
    return required.mean(
        [text == each.episode.answer for text, each in zip(texts, predictions, strict=True)], "top1"
    )


EXACT_MATCH = Metric(
    name="exact_match",
    value=exact_match,
    needs="generation",
    unit=Unit("exact match, %"),
    plain_unit=Unit("exact match", factor=1.0, decimals=2),
)
TOP1 = Metric(name="top1", value=top1, needs="generation", unit=Unit("top-1 accuracy, %"))
