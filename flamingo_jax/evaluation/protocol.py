"""The protocol of an evaluation: all that determines a number besides the model and the data.

Support examples and queries are chosen in the same way for all benchmarks (paper, A.2 and B.1.4).
`evaluate` reads the protocol from its config. An evaluation during training makes it from
`TrainConfig.evaluate`. Each task gets it when it is made.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from flamingo_jax.core import ranges, seeds
from flamingo_jax.core.config import FieldError
from flamingo_jax.inference.config import InferenceConfig

Split = Literal["test", "validation"]
Selection = Literal["random", "rices"]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How queries and support examples are chosen, and how the model answers.

    Attributes:
        shots: numbers of support examples; each is an evaluation of its own.
        n: queries per task and number of shots; 0: all that a benchmark has.
        seed: seed of the choice of queries and support examples.
        split: "test": the queries of the paper's tables; "validation": queries from the training
            split that are in no support set.
        selection: which support examples a query gets: "random" ones, or "rices": those with the
            images most similar to the query's.
        ensemble: number of orders of the support examples over which the scores of candidates are
            averaged; 1: no ensembling.
        num_support: size of the support set of a benchmark without classes.
        num_support_per_class: support items for each class, if the items have classes.
        text_examples: examples without images before a query at 0 shots, in open-ended tasks; two
            in the paper, which finds one much worse and more little better (paper, A.2). 0 suits
            fine-tuned models, which learnt the form of their task.
        templates: file of sentences around the name of a class, for zero-shot classification; None:
            see `evaluation.benchmarks.class_templates`.
        inference: decoding, scoring and the shapes that prompts are padded to.
    """

    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    n: int = 200
    seed: int = 1
    split: Split = "test"
    selection: Selection = "random"
    ensemble: int = 1
    num_support: int = 2048
    num_support_per_class: int = 32
    text_examples: int = 2
    templates: str | None = None
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        ranges.check(self, seeds.RANGE, "seed")
        ranges.check(self, ranges.whole(0), "shots", "n", "text_examples")
        ranges.check(self, ranges.whole(1), "ensemble", "num_support", "num_support_per_class")
        if len(set(self.shots)) < len(self.shots):
            raise FieldError(f"shots is {self.shots}; expected each number once.")
