"""Reads what a metric requires of an answer: decoded text, scores, references, keys of `extra`.

What is missing is an error that names the metric and the query.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.finite import finite
from flamingo_jax.evaluation.episode import Answer

# The words that begin an example in the paper's templates (B.1.5).
PROMPT_KEYWORDS = ("output", "question", "answer", "caption")
_NEXT_EXAMPLE = re.compile(
    r"<EOC>|<image>|\b(?:" + "|".join(PROMPT_KEYWORDS) + r")\s*:", re.IGNORECASE
)


class HiddenAnswersError(ValueError):
    """The right answers of this split are not public.

    The metric has no value. The answers are written to a file for the benchmark's server.
    """


class MissingResourceError(RuntimeError):
    """A metric needs a program, package or file that this machine lacks.

    The message says how to install it.
    """


def trim(text: str) -> str:
    """Cuts a text at the first tag or prompt keyword: "a cat Output: a dog" -> "a cat "."""
    found = _NEXT_EXAMPLE.search(text)
    return text[: found.start()] if found else text


def decoded(answer: Answer, metric: str) -> str:
    """Returns the decoded text, trimmed at the next prompt keyword.

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
    """Returns the log-likelihoods of the candidates, in their order.

    Raises:
        ValueError: the candidates were not scored, or not all of them.
        NonFiniteError: a score is NaN or infinite.
    """
    episode = answer.episode
    if answer.scores is None or not episode.candidates:
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: no candidates were scored. The task needs "
            "candidates for this metric."
        )
    if len(answer.scores) != len(episode.candidates):
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: expected a score for each of "
            f"{len(episode.candidates)} candidates, got {len(answer.scores)}. Evaluate it again."
        )
    finite(answer.scores, f"scores of query {episode.query_id!r}, of which {metric} is asked,")
    return answer.scores


def position(answer: Answer, metric: str) -> int:
    """Returns the index of the right answer among the candidates.

    Raises:
        ValueError: the right answer is not a candidate.
    """
    episode = answer.episode
    if episode.answer not in episode.candidates:
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: the answer {episode.answer!r} is not "
            f"among its {len(episode.candidates)} candidates. Check the task's annotations."
        )
    return episode.candidates.index(episode.answer)


def references(answer: Answer, metric: str) -> tuple[str, ...]:
    """Returns the right answers of the annotations.

    Raises:
        ValueError: the episode has no references.
    """
    episode = answer.episode
    if not episode.references:
        raise ValueError(
            f"{metric} of query {episode.query_id!r}: it has no references. The task must give "
            "all right answers."
        )
    return episode.references


def extra(answer: Answer, metric: str, key: str) -> Any:
    """Returns `answer.episode.extra[key]`.

    Raises:
        ValueError: the key is missing.
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
    """Returns the mean of one value per answer.

    Raises:
        ValueError: there are no values.
        NonFiniteError: a value is NaN or infinite.
    """
    if not values:
        raise ValueError(
            f"{metric} of no predictions is not defined: evaluate at least one episode."
        )
    finite(values, f"values of {metric}")
    return float(sum(values) / len(values))
