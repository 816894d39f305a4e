"""Top-1 accuracy of close-ended tasks.

An answer is right if it has the highest log-likelihood of all candidates (paper, A.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def is_first(answer: Answer, metric: str = "ranking") -> bool:
    """Returns True if the right answer is ranked first.

    Args:
        answer: with the scores of its candidates.
        metric: name of the metric that asks, for messages.

    Raises:
        ValueError: the candidates were not scored.
    """
    required.scored(answer, metric)
    return answer.ranked_first == answer.episode.answer


def ranking(answers: Sequence[Answer]) -> float:
    """Returns the fraction of queries with the right answer ranked first.

    Raises:
        ValueError: there are no answers, or they were not scored.
    """
    return required.mean([is_first(each) for each in answers], "ranking")


def answer_nll(answers: Sequence[Answer]) -> float:
    """Returns the mean negative log-likelihood of the right answer, in nats.

    Raises:
        ValueError: there are no answers, or they were not scored.
    """
    of_right_answers = [
        required.scored(each, "nll")[required.position(each, "nll")] for each in answers
    ]
    return -required.mean(of_right_answers, "nll")


RANKING = Metric(
    name="ranking",
    value=ranking,
    needs="scores",
    unit=Unit("top-1 accuracy, %"),
    plain_unit=Unit("ranking", factor=1.0, decimals=2),
)
_NATS = Unit("nll", factor=1.0, decimals=2, of_each=False)
NLL = Metric(name="nll", value=answer_nll, needs="scores", unit=_NATS, plain_unit=_NATS)
