"""Metrics of POPE, as its evaluate.py computes them; "yes" is the positive class.

An answer is read up to its first full stop, without commas: it is "no" if one of its words is No,
no or not, and else "yes". An empty answer is a "yes". Where the script would divide by 0, the value
here is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

_NO = {"No", "not", "no"}


class YesNoCounts(NamedTuple):
    """Numbers of answers: true and false "yes", true and false "no"."""

    true_yes: int
    false_yes: int
    true_no: int
    false_no: int


def is_yes(text: str) -> bool:
    """Returns True unless the first sentence of an answer says no."""
    return not _NO & set(text.partition(".")[0].replace(",", "").split())


def counts(answers: Sequence[Answer], metric: str) -> YesNoCounts:
    """Counts the answers.

    Raises:
        ValueError: there are no answers, or nothing was decoded.
    """
    if not answers:
        raise ValueError(f"{metric} of no predictions is not defined: evaluate some.")
    pairs = [
        (is_yes(required.decoded(each, metric)), each.episode.answer == "yes") for each in answers
    ]
    kinds = ((True, True), (True, False), (False, False), (False, True))
    return YesNoCounts(*map(pairs.count, kinds))


def precision(found: YesNoCounts) -> float:
    """Returns the share of right answers among the "yes"."""
    return _ratio(found.true_yes, found.true_yes + found.false_yes)


def recall(found: YesNoCounts) -> float:
    """Returns the share of the shown objects that the answers name."""
    return _ratio(found.true_yes, found.true_yes + found.false_no)


def f1(found: YesNoCounts) -> float:
    """Returns the harmonic mean of precision and recall."""
    return _ratio(2 * found.true_yes, 2 * found.true_yes + found.false_yes + found.false_no)


def accuracy(found: YesNoCounts) -> float:
    """Returns the share of right answers."""
    return _ratio(found.true_yes + found.true_no, sum(found))


def yes_ratio(found: YesNoCounts) -> float:
    """Returns the share of "yes" among the answers; half the questions have it."""
    return _ratio(found.true_yes + found.false_yes, sum(found))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _metric(
    name: str, title: str, value: Callable[[YesNoCounts], float], *, of_each: bool = False
) -> Metric:
    return Metric(
        name=name,
        value=lambda answers: value(counts(answers, name)),
        needs="generation",
        unit=Unit(f"{title}, %", of_each=of_each),
    )


POPE_F1 = _metric("pope_f1", "F1", f1)
POPE_ACCURACY = _metric("pope_accuracy", "accuracy", accuracy, of_each=True)
POPE_PRECISION = _metric("pope_precision", "precision", precision)
POPE_RECALL = _metric("pope_recall", "recall", recall)
POPE_YES = _metric("pope_yes", "share of yes", yes_ratio, of_each=True)
