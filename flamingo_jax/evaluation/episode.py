"""What flows from a benchmark's files to a line of results: an example, a prompt, an answer, a row.

    annotation files --Benchmark.items--> Item       one annotated example
                     --Task.episodes----> Episode    an item, with its prompt's support examples
                     --the model--------> Answer     the model's text and scores; a line of
                                                     predictions.jsonl
                     --the metrics------> Row        one line of results.json

`Item` is in `evaluation.benchmarks.benchmark`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from flamingo_jax.inference.prompt import Visual

Part: TypeAlias = "str | Visual"

MOST_CANDIDATES = 100  # in a line of predictions.jsonl; VisDial has as many


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """One query of a benchmark, with the support examples before it.

    Attributes:
        parts: the prompt in reading order: text, and images or videos in any form that
            `inference.prompt` reads. `<BOS>` and the `<image>` tags are added by
            `inference.prompt`; `<EOC>` is in the text, at the end of each support example.
        candidates: the possible answers of a close-ended task, as the text that follows the prompt;
            empty for an open-ended one.
        answer: the right answer; one of `candidates` if there are any; "" if it is not known
            (hidden test answers).
        query_id: name of the query, for the predictions and for the test that no query is its own
            support.
        support_ids: names of the support examples, in prompt order.
        masked: True in a control: the images are hidden from the text (media_index 0 everywhere).
        references: all right answers, as the annotations have them; () where `answer` is the only
            one.
        extra: other values that the metric or the submission needs; JSON values. "groups" has the
            names of the groups of queries that this one belongs to, for `Row.groups`.
        orders: an ensemble's other prompts: the same support examples in other orders. Scores are
            averaged over all prompts.
        separator: text between the prompt and a candidate that is not part of the answer.
        is_spaced: True if `after_images` changes the prompt: in the paper's templates.
    """

    parts: tuple[Part, ...]
    candidates: tuple[str, ...]
    answer: str
    query_id: str
    support_ids: tuple[str, ...] = ()
    masked: bool = False
    references: tuple[str, ...] = ()
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    orders: tuple[tuple[Part, ...], ...] = ()
    separator: str = ""
    is_spaced: bool = False

    def __post_init__(self) -> None:
        # "": the answer is hidden
        if self.candidates and self.answer and self.answer not in self.candidates:
            raise ValueError(
                f"episode {self.query_id!r}: the answer {self.answer!r} is not among its "
                f"candidates {self.candidates!r}."
            )

    def after_images(self, space: str) -> Episode:
        """Returns the episode with the marker of a model between an image and the text after it.

        Args:
            space: `Markers.after_image`.
        """
        if not (self.is_spaced and space):
            return self

        def spaced(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            before: Sequence[Part] = ("", *parts)
            return tuple(
                f"{space}{part}" if isinstance(part, str) and not isinstance(last, str) else part
                for last, part in zip(before, parts, strict=False)
            )

        orders = tuple(spaced(parts) for parts in self.orders)
        return dataclasses.replace(self, parts=spaced(self.parts), orders=orders, is_spaced=False)

    @property
    def prompt(self) -> str:
        """The prompt as text, with `<image>` for each image or video."""
        return "".join(part if isinstance(part, str) else "<image>" for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model answered to one episode.

    Attributes:
        task: name of the task.
        shots: number of support examples.
        episode: what was asked, with the right answer.
        text: the decoded text, up to `<EOC>`; None if no metric asked for it.
        scores: log-likelihood of each of the episode's candidates; None if no metric asked for
            them.
    """

    task: str
    shots: int
    episode: Episode
    text: str | None = None
    scores: tuple[float, ...] | None = None

    @property
    def ranked_first(self) -> str | None:
        """The candidate with the highest score (the first of equals)."""
        if self.scores is None:
            return None
        return self.episode.candidates[max(range(len(self.scores)), key=self.scores.__getitem__)]

    def line(self) -> dict[str, Any]:
        """Returns the line of predictions.jsonl: of many candidates, the best only."""
        episode, candidates, scores = self.episode, self.episode.candidates, self.scores
        if scores is not None and len(scores) > MOST_CANDIDATES:
            ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: -pair[0])
            scores, candidates = zip(*ranked[:MOST_CANDIDATES], strict=True)
        return {
            "task": self.task,
            "shots": self.shots,
            "query_id": episode.query_id,
            "prompt": episode.prompt,
            "answer": episode.answer,
            "text": self.text,
            "candidates": () if scores is None else candidates,
            "scores": scores,
            "references": episode.references,
            "extra": dict(episode.extra),
        }


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results.json.

    Attributes:
        task: name of the task.
        split: name of the split that the queries are from, such as "val". Version 0.4.0 wrote
            "test" for all splits of the paper's tables, and "validation" for queries drawn from
            the training split.
        shots: number of support examples.
        metric: name of the metric.
        value: in the metric's unit.
        n: number of queries.
        seed: seed of the choice of queries and support examples.
        selection: how support examples were chosen, "random" or "rices".
        ensemble: number of orders of the support examples, or of sentences per class, over which
            scores are averaged; 1 = no ensembling.
        decoding: "greedy", "beam" or "sample" for decoded answers, "log_likelihood" for ranked
            candidates, "cosine" for compared embeddings.
        checkpoint: the model's checkpoint.
        step: the checkpoint's step.
        num_support: largest size of the support set; None: there is none, or it is drawn per class.
        num_support_per_class: the same for each class; None: there is none, or no classes.
        num_text_examples: examples without images before the query.
        groups: the same metric on named groups of the queries, such as {"out-domain": 0.71}; None:
            the benchmark names none. Version 0.4.0 wrote none of these four.
    """

    task: str
    split: str
    shots: int
    metric: str
    value: float
    n: int
    seed: int
    selection: str
    ensemble: int
    decoding: str
    checkpoint: str
    step: int
    num_support: int | None = None
    num_support_per_class: int | None = None
    num_text_examples: int | None = None
    groups: Mapping[str, float] | None = None
