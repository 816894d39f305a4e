"""What the model answered to one episode; a line of predictions.jsonl."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The model's answer to one episode, next to the right one.

    Attributes:
        query_id: the episode's query.
        prompt: its prompt as text, with `<image>` where the images were.
        answer: the right answer.
        text: what was decoded, up to `<EOC>`; None if no metric asked for it.
        candidates: the candidates of a close-ended task.
        scores: their log-likelihoods, in the same order; None if no metric asked for them.
        references: all right answers, as the annotations have them; () where `answer` is the only
            one.
        extra: what else a metric or a submission needs of the annotations; JSON values.
    """

    query_id: str
    prompt: str
    answer: str
    text: str | None = None
    candidates: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    references: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ranked_first(self) -> str | None:
        """The candidate with the highest score (the first of equals)."""
        if self.scores is None:
            return None
        return self.candidates[max(range(len(self.scores)), key=self.scores.__getitem__)]
