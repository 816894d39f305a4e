"""Metrics of GQA, as its eval.py computes them: accuracy, and the distribution of answers.

The script compares strings. Here a decoded text is put in lower case and loses outer spaces and its
full stop first, as others do before they call the script.

    distribution of a group of questions   sum over its answers of (predicted - right)^2 / right
    distribution                           mean over groups by their size, / 100; lower is better

`predicted` and `right` are numbers of questions with this answer.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit
from flamingo_jax.evaluation.metrics.exact_match import normalise


def gqa_accuracy(answers: Sequence[Answer]) -> float:
    """Returns the fraction of answers that equal the annotated one.

    Raises:
        ValueError: there are no answers, or nothing was decoded.
    """
    texts = [normalise(required.decoded(each, "gqa_accuracy")) for each in answers]
    expected = [each.episode.answer for each in answers]
    return required.mean([a == b for a, b in zip(texts, expected, strict=True)], "gqa_accuracy")


def gqa_distribution(answers: Sequence[Answer]) -> float:
    """Returns how far the answers are from the distribution of the right ones; 0 is best.

    Reads `text`, `answer`, and `extra["kind"]`: the group of similar questions ("global"), or None.
    Questions without a group do not count; if none has one, the value is 0.

    Raises:
        ValueError: there are no answers, nothing was decoded, or `kind` is missing.
    """
    if not answers:
        raise ValueError("gqa_distribution of no predictions is not defined: evaluate some.")
    right: dict[str, collections.Counter[str]] = {}
    given: dict[str, collections.Counter[str]] = {}
    for each in answers:
        text = normalise(required.decoded(each, "gqa_distribution"))
        if (kind := required.extra(each, "gqa_distribution", "kind")) is not None:
            right.setdefault(kind, collections.Counter())[each.episode.answer] += 1
            given.setdefault(kind, collections.Counter())[text] += 1
    total = sum(counts.total() for counts in right.values())
    weighted = sum(
        counts.total()
        * sum((given[kind][answer] - number) ** 2 / number for answer, number in counts.items())
        for kind, counts in right.items()
    )
    return weighted / total / 100 if total else 0.0


GQA_ACCURACY = Metric(
    name="gqa_accuracy", value=gqa_accuracy, needs="generation", unit=Unit("accuracy, %")
)
GQA_DISTRIBUTION = Metric(
    name="gqa_distribution",
    value=gqa_distribution,
    needs="generation",
    unit=Unit("distribution (lower is better)", factor=1.0, decimals=2, of_each=False),
    caveat="The distribution of GQA grows with the number of queries: numbers on a part of a test "
    "set are not comparable.",
)
