"""A benchmark in memory, for tests of what is the same for all benchmarks."""

import dataclasses

from flamingo_jax.evaluation.benchmarks.benchmark import Item
from tests.inference import tiny

WORDS = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True)
class Colours:
    """Items with an image of four colours and a word; close-ended where `metrics` says so, with classes where `labelled`."""

    directory: str = ""
    name: str = "colours"
    metrics: tuple[str, ...] = ("exact_match",)
    chance: float | None = None
    max_shots: int = 32
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
            candidates=WORDS if "ranking" in self.metrics else (),
            label=word if self.labelled else "",
            extra={"question_id": number},
        )
