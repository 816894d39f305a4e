"""Few-shot prompts: which examples precede a query, and how the prompt is written.

Follows the paper (A.2, B.1.4 and Figure 8).

    query --(seed, its id)--> supports in random order
                              or, with RICES, the most similar ones, the most similar last
          --> image "Output: A cat.<EOC>" image "Output: A dog.<EOC>" image "Output:"

What is between an image and "Output:" is a marker of the model (`Markers.after_image`); in the
paper it is a space. At 0 shots an open-ended benchmark has examples without their images in front
of the query ("Output: A cat.<EOC>Output: A dog.<EOC>" image "Output:"), two in the paper
(`Protocol.text_examples`); a close-ended one has no examples. A larger prompt begins with the
supports of a smaller one (with RICES it ends with them). Supports do not depend on the number of
queries that are evaluated, and none shows the query's picture or video. An ensemble asks the same
question with the supports in several orders and averages the scores of the candidates.

Where the paper is silent, these are our choices: supports are drawn anew for each query (as in
OpenFlamingo). The first order of an ensemble is that of the prompt without ensembling; the others
are random and all different. The examples without images are drawn at random, with RICES too.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flamingo_jax.core.seeds import generator
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.draws import (
    TrainingDraw,
    draw_from_training,
    draw_queries,
    labels_of,
)
from flamingo_jax.evaluation.episode import Episode, Part
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.inference.prompt import Visual
from flamingo_jax.tokenizers.markers import EOC

# (visuals of queries, visuals of supports, k) -> int[queries, k]: the indices of the k supports
# most similar to each query, the most similar first.
Nearest = Callable[[Sequence[Visual], Sequence[Visual], int], np.ndarray]


def make(data: Mapping[str, str], protocol: Protocol, *, benchmark: Benchmark) -> FewShotTask:
    """Makes the task of a benchmark.

    Raises:
        TaskError: the benchmark's directory is not given, or it is open-ended and the protocol asks
            for an ensemble.
    """
    place = task.directory(data, benchmark.data or benchmark.name, benchmark.name)
    return FewShotTask(benchmark.at(place), protocol)


def with_nearest(tasks: Sequence[task.Task], nearest: Nearest) -> list[task.Task]:
    """Returns the tasks; those of benchmarks find similar supports with `nearest`."""
    return [
        dataclasses.replace(each, nearest=nearest) if isinstance(each, FewShotTask) else each
        for each in tasks
    ]


@dataclasses.dataclass(frozen=True)
class FewShotTask:
    """A benchmark under the few-shot protocol.

    Attributes:
        benchmark: the benchmark, with its directory.
        protocol: how queries and supports are chosen.
        nearest: finds similar supports; required if protocol.selection is "rices".
    """

    benchmark: Benchmark
    protocol: Protocol = Protocol()
    nearest: Nearest | None = None

    def __post_init__(self) -> None:
        if self.protocol.ensemble > 1 and self.is_open_ended:
            raise task.TaskError(
                f"the task {self.name!r} is open-ended (it decodes answers), so an ensemble of "
                f"{self.protocol.ensemble} orders has no scores to average: set ensemble=1, or "
                "leave the task out."
            )
        if self.benchmark.is_whole and self.protocol.n:
            raise task.TaskError(
                f"the task {self.name!r} judges several queries together, so it needs all of them: "
                f"got n={self.protocol.n}; pass --config.n=0, or leave the task out."
            )

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.benchmark.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the benchmark's metrics."""
        return tuple(each.name for each in self.benchmark.metrics)

    @property
    def chance(self) -> float | None:
        """What guessing gives; None if that is not defined."""
        return self.benchmark.chance

    @property
    def is_open_ended(self) -> bool:
        """True if answers are decoded, rather than candidates scored."""
        return any(each.needs == "generation" for each in self.benchmark.metrics)

    @property
    def answers_are_hidden(self) -> bool:
        """True if no right answer of the queries is known, as of VQAv2's test-dev."""
        items = self._test if self.protocol.split == "test" else ()
        items = items if isinstance(items, list) else items[:1]  # some are made on request
        return len(items) > 0 and not any(item.answer or item.references for item in items)

    @property
    def _num_text_examples(self) -> int:
        """Examples without images at 0 shots; 0 where there is no training split to draw from."""
        has_examples = self.is_open_ended and self.benchmark.max_shots > 0
        return self.protocol.text_examples if has_examples else 0

    def submission_questions(self) -> Sequence[int | str]:
        """Returns all questions that the benchmark's server expects answers to, as it declares."""
        return self.benchmark.submission_questions()

    def setting(self, shots: int) -> dict[str, Any]:
        """Returns the split of the queries, and the sizes of what is drawn for them."""
        protocol, has_classes = self.protocol, bool(self._labels) if shots else False
        examples = self._num_text_examples if not shots else 0
        is_drawn = bool(shots or examples)
        return {
            "split": self.benchmark.split(protocol.split),
            "num_support": protocol.num_support if is_drawn and not has_classes else None,
            "num_support_per_class": protocol.num_support_per_class if has_classes else None,
            "num_text_examples": examples,
        }

    def accepts(self, shots: int) -> bool:
        """Returns True up to the benchmark's largest number of support examples."""
        return shots <= self.benchmark.max_shots

    def episodes(self, shots: int) -> list[Episode]:
        """Returns the first `protocol.n` episodes (0: all there are).

        Args:
            shots: support examples of each query.

        Raises:
            TaskError: there are fewer queries than `protocol.n`, or too few items for the supports.
        """
        protocol = self.protocol
        num_examples = shots or self._num_text_examples
        drawn = TrainingDraw()
        if num_examples > 0 or protocol.split == "validation":
            drawn = draw_from_training(self.benchmark, self._train, self._labels, protocol)
        queries = draw_queries(
            drawn.queries if protocol.split == "validation" else self._test,
            protocol,
            task_name=self.name,
            stream=self.name,
        )
        if len(drawn.supports) < num_examples:
            raise task.TaskError(
                f"task {self.name!r}: {shots} shots need {num_examples} support examples, "
                f"{self._too_few(len(drawn.supports))}"
            )
        supports = _Supports(self.name, drawn.supports)
        if protocol.selection == "rices" and shots:
            chosen = self._most_similar(queries, supports, shots)
        else:
            chosen = [self._random(query, supports, num_examples) for query in queries]
        # Prompts share the text of a support, to save memory.
        texts: dict[str, str] = {}
        return [
            self._episode(query, supports, has_images=shots > 0, texts=texts)
            for query, supports in zip(queries, chosen, strict=True)
        ]

    def _too_few(self, num: int) -> str:
        """Returns why there are only `num` supports, and what to do."""
        field = "num_support_per_class" if self._labels else "num_support"
        limit = getattr(self.protocol, field)
        if num >= limit * max(1, len(set(self._labels))):
            return f"{field}={limit} allows {num}. Take fewer shots, or a larger {field}."
        return (
            f"the training split has {num} with an answer. Take fewer shots, or give the whole "
            "split."
        )

    @functools.cached_property
    def _train(self) -> Sequence[Item]:
        return self.benchmark.train()

    @functools.cached_property
    def _test(self) -> Sequence[Item]:
        return self.benchmark.test()

    @functools.cached_property
    def _labels(self) -> tuple[str, ...]:
        """The class of each training item; () if they have no classes."""
        return labels_of(self._train)

    def _random(self, query: Item, supports: _Supports, num: int) -> list[Item]:
        """Draws supports one after the other, so that more shots only add to them."""
        rng = generator(self.protocol.seed, f"{self.name}/supports/{query.id}", 0)
        supports.check_enough(query, num)
        chosen: list[int] = []
        while len(chosen) < num:
            index = int(rng.integers(len(supports.items)))
            if index not in chosen and supports.shown[index] != query.shown:
                chosen.append(index)
        return [supports.items[index] for index in chosen]

    def _most_similar(
        self, queries: Sequence[Item], supports: _Supports, shots: int
    ) -> list[list[Item]]:
        """Returns the nearest supports of each query, the most similar last (RICES).

        The most similar picture of all is the query's own: supports that show it are left out.
        """
        if self.nearest is None:
            raise task.TaskError(
                f"task {self.name!r}: selection=rices needs the features of a vision encoder, and "
                "this run has none: take selection=random."
            )
        everything = (*queries, *supports.items)
        if without := next((item for item in everything if item.visual is None), None):
            raise task.TaskError(
                f"task {self.name!r}: the item {without.id!r} has no image, so selection=rices "
                "cannot compare it: take selection=random."
            )
        visuals = [
            [item.visual for item in items if item.visual is not None]
            for items in (queries, supports.items)
        ]
        for query in queries:
            supports.check_enough(query, shots)
        # With as many more as show the picture of one query, there are always enough others.
        more = max(supports.counts[query.shown] for query in queries)
        rows = self.nearest(visuals[0], visuals[1], shots + more)
        return [
            [supports.items[index] for index in row if supports.shown[index] != query.shown][
                :shots
            ][::-1]
            for query, row in zip(queries, rows.tolist(), strict=True)
        ]

    def _episode(
        self,
        query: Item,
        supports: Sequence[Item],
        *,
        has_images: bool,
        texts: dict[str, str],
    ) -> Episode:
        def prompt(supports: Sequence[Item]) -> tuple[Part, ...]:
            parts: list[Part] = []
            for item in supports:
                parts += [item.visual] if has_images and item.visual is not None else []
                parts.append(texts.setdefault(item.id, f"{item.prefix} {item.answer}{EOC}"))
            return (*parts, *([] if query.visual is None else [query.visual]), query.prefix)

        others = []
        if has_images and self.protocol.ensemble > 1:
            rng = generator(self.protocol.seed, f"{self.name}/orders/{query.id}", 0)
            others = _other_orders(rng, len(supports), self.protocol.ensemble - 1)
        return Episode(
            parts=prompt(supports),
            candidates=query.candidates,
            answer=query.answer,
            query_id=query.id,
            support_ids=tuple(item.id for item in supports),
            references=query.references,
            extra=query.extra,
            orders=tuple(prompt([supports[index] for index in order]) for order in others),
            separator=" ",
            is_spaced=True,
        )


class _Supports:
    """A support set, and what its items show.

    Attributes:
        items: the support examples.
        shown: `Item.shown` of each.
        counts: number of examples that show the same.
    """

    def __init__(self, task_name: str, items: Sequence[Item]) -> None:
        self._task_name, self.items = task_name, items
        self.shown = [item.shown for item in items]
        self.counts = collections.Counter(self.shown)

    def check_enough(self, query: Item, num: int) -> None:
        """Checks that `num` examples show something else than a query.

        Raises:
            TaskError: there are fewer.
        """
        others = len(self.items) - self.counts[query.shown]
        if others < num:
            raise task.TaskError(
                f"task {self._task_name!r}: the query {query.id!r} needs {num} support examples "
                f"that show another picture than its own; {others} of the {len(self.items)} do. "
                "Take fewer shots, or a larger support set."
            )


def _other_orders(rng: np.random.Generator, size: int, count: int) -> list[tuple[int, ...]]:
    """Returns up to `count` different random orders other than 0, 1, 2, ...

    There are fewer if `size` items do not have as many orders.
    """
    found: dict[tuple[int, ...], None] = {tuple(range(size)): None}
    wanted = min(count + 1, math.factorial(min(size, 8)))  # 8! = 40320 orders are always enough
    while len(found) < wanted:
        found.setdefault(tuple(rng.permutation(size).tolist()))
    return list(found)[1:]
