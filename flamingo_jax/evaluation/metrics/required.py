"""What a metric needs of the predictions, or an error that says what is missing and where.

Decoded text, scores, keys of `extra`, packages of the system.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flamingo_jax.evaluation.episode import Answer

# The words that begin the next example in the paper's templates (Appendix B.1.5), and the tags
# between examples.
PROMPT_KEYWORDS = ("output", "question", "answer", "caption")
_NEXT_EXAMPLE = re.compile(
    r"<EOC>|<image>|\b(?:" + "|".join(PROMPT_KEYWORDS) + r")\s*:", re.IGNORECASE
)


class HiddenAnswersError(ValueError):
    """The answers of this split are not public.

    No value can be computed here, predictions are written for the benchmark's server.
    """


class MissingResourceError(RuntimeError):
    """A program, package or data file that a metric needs is not on this machine.

    The message says how to install it.
    """


def trim(text: str) -> str:
    """The prediction up to the first tag or prompt keyword: "a cat Output: a dog" -> "a cat "."""
    found = _NEXT_EXAMPLE.search(text)
    return text[: found.start()] if found else text


def decoded(answer: Answer, metric: str) -> str:
    """What was decoded, trimmed at the next prompt keyword.

    Raises:
        ValueError: nothing was decoded for this episode.
    """
    if answer.text is None:
        raise ValueError(
            f"{metric} of query {answer.episode.query_id!r}: nothing was decoded. Run the "
            "evaluation with generation."
        )
    return trim(answer.text)


def scored(answer: Answer, metric: str) -> tuple[float, ...]:
    """The log-likelihoods of the candidates, in their order.

    Raises:
        ValueError: the candidates were not scored, or one score is not a number.
    """
    episode = answer.episode
    if answer.scores is None or not episode.candidates:
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: no candidates were scored. The task needs "
            "candidates for this metric."
        )
    if len(answer.scores) != len(episode.candidates) or any(
        score != score for score in answer.scores
    ):
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: expected a score for each of "
            f"{len(episode.candidates)} candidates, got {len(answer.scores)} with "
            f"{sum(s != s for s in answer.scores)} NaN. Check the model's weights."
        )
    return answer.scores


def position(answer: Answer, metric: str) -> int:
    """The index of the right answer among the candidates.

    Raises:
        ValueError: it is not among them.
    """
    episode = answer.episode
    if episode.answer not in episode.candidates:
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: the answer {episode.answer!r} is not "
            f"among its {len(episode.candidates)} candidates. Check the task's annotations."
        )
    return episode.candidates.index(episode.answer)


def references(answer: Answer, metric: str) -> tuple[str, ...]:
    """The right answers of the annotations.

    Raises:
        ValueError: there are none.
    """
    episode = answer.episode
    if not episode.references:
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: it has no references. The task must give "
            "all right answers."
        )
    return episode.references


def extra(answer: Answer, metric: str, key: str) -> Any:
    """`answer.episode.extra[key]`.

    Raises:
        ValueError: there is no such key.
    """
    episode = answer.episode
    if key not in episode.extra:
        raise ValueError(
            f"{metric} of query {episode.query_id!r} reads extra[{key!r}], which is not there "
            f"(there are: {', '.join(sorted(episode.extra)) or 'none'}). The task must supply "
            "it."
        )
    return episode.extra[key]


def mean(values: Sequence[float | bool], metric: str) -> float:
    """The mean.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError(
            f"{metric} of no predictions is not defined: evaluate at least one episode."
        )
    return float(sum(values) / len(values))
