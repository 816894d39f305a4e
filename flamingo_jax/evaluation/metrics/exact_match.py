"""Exact match of open-ended answers: the text before `<EOC>` equals the answer, after normalising both.

Some models fail to write `<EOC>` and go on with the next example of the prompt, "We therefore trim the prediction to the text
preceding the prompt keywords before quantitative evaluation" (first version of the paper, section 4.4.1): so do we.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flamingo_jax.evaluation.metrics.prediction import Prediction

# The words that begin the next example in the paper's templates (Appendix B.1.5), and the tags between examples.
PROMPT_KEYWORDS = ("output", "question", "answer", "caption")
_NEXT_EXAMPLE = re.compile(r"<EOC>|<image>|\b(?:" + "|".join(PROMPT_KEYWORDS) + r")\s*:", re.IGNORECASE)


def trim(text: str) -> str:
    """The prediction up to the first tag or prompt keyword: "a cat Output: a dog" -> "a cat "."""
    found = _NEXT_EXAMPLE.search(text)
    return text[: found.start()] if found else text


def normalise(text: str) -> str:
    """Lower case, single spaces, no final full stop: what two equal answers may differ in."""
    return " ".join(text.lower().split()).rstrip(" .")


def is_exact(prediction: Prediction) -> bool:
    """Whether the decoded text is the answer.

    Raises:
        ValueError: nothing was decoded for this episode.
    """
    if prediction.text is None:
        raise ValueError(
            f"exact_match of query {prediction.query_id!r}: nothing was decoded. Run the evaluation with generation."
        )
    return normalise(trim(prediction.text)) == normalise(prediction.answer)


def exact_match(predictions: Sequence[Prediction]) -> float:
    """The fraction of exact answers.

    Raises:
        ValueError: there are no predictions, or nothing was decoded.
    """
    if not predictions:
        raise ValueError("exact_match of no predictions is not defined: evaluate at least one episode.")
    return sum(map(is_exact, predictions)) / len(predictions)
