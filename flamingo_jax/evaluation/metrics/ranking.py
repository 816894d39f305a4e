"""Top-1 accuracy of close-ended tasks.

The answer has the highest log-likelihood of all candidates (paper, Appendix A.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.metrics.prediction import Prediction


def is_first(prediction: Prediction) -> bool:
    """Whether the answer is ranked first.

    Raises:
        ValueError: the candidates were not scored.
    """
    if prediction.ranked_first is None:
        raise ValueError(
            f"ranking of query {prediction.query_id!r}: no candidates were scored. The task needs "
            "candidates for this metric."
        )
    return prediction.ranked_first == prediction.answer


def ranking(predictions: Sequence[Prediction]) -> float:
    """The fraction of queries whose answer is ranked first.

    Raises:
        ValueError: there are no predictions, or they were not scored.
    """
    if not predictions:
        raise ValueError("ranking of no predictions is not defined: evaluate at least one episode.")
    return sum(map(is_first, predictions)) / len(predictions)


def answer_nll(predictions: Sequence[Prediction]) -> float:
    """The mean negative log-likelihood of the right answer, in nats.

    Raises:
        ValueError: there are no predictions, or they were not scored.
    """
    if not predictions or any(prediction.scores is None for prediction in predictions):
        raise ValueError(
            "nll needs the scores of at least one prediction: the task needs "
            "candidates for this metric."
        )
    return -sum(
        p.scores[p.candidates.index(p.answer)] for p in predictions if p.scores is not None
    ) / len(predictions)
