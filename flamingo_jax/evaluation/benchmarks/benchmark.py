"""What a benchmark of the paper is: annotated items with an image or a video, and how one of them is written into a prompt (paper, Table 6 and B.1.5).

    official annotation files --tasks/NAME.py--> Item, Item, ...     train(): supports, and queries of validation       test(): queries of the paper's table
                                                                                |
    few_shot.FewShotTask chooses supports and queries, and writes the prompts  <+

A benchmark says what there is; how supports are chosen, how many, and in what order is the same for all (`evaluation/protocol.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from flamingo_jax.inference.prompt import Visual


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """One annotated example, to be a support example or a query.

    Attributes:
      id: names it; unique within the benchmark.
      visual: its image or video, mostly a path that is read when the prompt is; None: the item is text alone.
      prefix: the text between the `<image>` tag and the answer, such as "Output:" or "Question: What is it? Answer:".
      answer: the text that follows in a support example, without its leading space, such as "A cat."; "" if it is not known (hidden test answers).
      references: all right answers, as the annotations have them, for the metrics.
      candidates: the possible answers of a close-ended benchmark, in the form of `answer`.
      label: class of the item, where supports are drawn per class; "" elsewhere.
      extra: what else the metric or the submission needs; JSON values.
    """

    id: str
    visual: Visual | None
    prefix: str
    answer: str
    references: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    label: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Benchmark(Protocol):
    """One of the paper's benchmarks. Implementations are small frozen dataclasses, one file each in `evaluation/benchmarks`."""

    @property
    def name(self) -> str:
        """The name in results.json and on the command line, such as "coco"."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names from `evaluation.metrics.METRICS`; the first one is the paper's."""
        ...

    @property
    def chance(self) -> float | None:
        """What guessing gives, in the unit of the first metric; None if that is not defined."""
        ...

    @property
    def max_shots(self) -> int:
        """The most support examples that are defined: 0 for RareAct, 16 for VisDial, else 32."""
        ...

    def train(self) -> Sequence[Item]:
        """The training split: where supports are drawn from, and the queries of the paper's validation."""
        ...

    def test(self) -> Sequence[Item]:
        """The queries of the paper's Table 1 (Table 6, last column but one)."""
        ...
