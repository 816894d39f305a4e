"""A benchmark in memory, for tests of the code that all benchmarks share."""

import dataclasses
from typing import Any

from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.metrics import Metric
from flamingo_jax.evaluation.metrics.exact_match import EXACT_MATCH
from flamingo_jax.evaluation.metrics.ranking import RANKING
from tests.inference import tiny

WORDS = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Colours(Benchmark):
    """Items with an image of four colours and a word.

    `metrics` makes it open-ended or close-ended; `labelled` gives the items classes.
    """

    name: str = "colours"
    title: str = "Colours"
    metrics: tuple[Metric, ...] = (EXACT_MATCH,)
    visual: str = "image"
    queries: str = "test"
    items: Any = None  # `train` and `test` make them
    download: str = ""
    layout: str = ""
    num_train: int = 40
    num_test: int = 9
    labelled: bool = False
    hidden: bool = False
    has_images: bool = True

    def train(self):
        return [self._item("train", number) for number in range(self.num_train)]

    def test(self):
        return [self._item("test", number) for number in range(self.num_test)]

    def submission_questions(self):
        return range(self.num_test + 1)

    def _item(self, split, number):
        word = WORDS[number % 3]
        hidden = self.hidden and split == "test"
        return Item(
            id=f"{split}/{number}",
            visual=tiny.image(1000 * (split == "test") + number) if self.has_images else None,
            prefix="this is a",
            answer="" if hidden else word,
            references=() if hidden else (word,),
            candidates=WORDS if RANKING in self.metrics else (),
            label=word if self.labelled else "",
            extra={"question_id": number},
        )
