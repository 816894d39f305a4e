"""Flamingo fine-tuned on nine tasks, as data (paper, Table 2 and 3.2)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """One column of Table 2: a benchmark on one split.

    Attributes:
        benchmark: its name here, such as "coco".
        split: the split as printed; `column_of` finds it by that of a result.
        few_shot: Flamingo-80B with 32 examples and no fine-tuning; None: not reported.
        fine_tuned: Flamingo-80B, fine-tuned.
        sota: the state of the art of 2022.
        has_tricks: True if that one is an ensemble or was optimised for the metric (printed with a
            dagger).
        correction: what is odd about a printed number; "" if nothing is.
    """

    benchmark: str
    split: str
    few_shot: float | None
    fine_tuned: float
    sota: float
    has_tricks: bool
    correction: str = ""


_VISDIAL = (
    "VisDial, 32 shots: 56.8 is the value at 16 shots, the most that fit into the LM's context"
)
_TEXTVQA = "TextVQA, 32 shots: Table 2 prints 36.0, Table 1 37.9; the paper does not say why"
TABLE_2 = (
    FineTuned("vqav2", "test-dev", 67.6, 82.0, 81.3, has_tricks=True),
    FineTuned("vqav2", "test-std", None, 82.1, 81.3, has_tricks=True),
    FineTuned("coco", "test", 113.8, 138.1, 149.6, has_tricks=True),
    FineTuned("vatex", "test", 65.1, 84.2, 81.4, has_tricks=True),
    FineTuned("vizwiz", "test-dev", 49.8, 65.7, 57.2, has_tricks=True),
    FineTuned("vizwiz", "test-std", None, 65.4, 60.6, has_tricks=True),
    FineTuned("msrvttqa", "test", 31.0, 47.4, 46.8, has_tricks=False),
    FineTuned("visdial", "valid", 56.8, 61.8, 75.2, has_tricks=False, correction=_VISDIAL),
    FineTuned("visdial", "test-std", None, 59.7, 75.4, has_tricks=True),
    FineTuned("youcook2", "valid", 86.8, 118.6, 138.7, has_tricks=False),
    FineTuned("textvqa", "valid", 36.0, 57.1, 54.7, has_tricks=False, correction=_TEXTVQA),
    FineTuned("textvqa", "test-std", None, 54.1, 73.7, has_tricks=False),
    FineTuned("hateful_memes", "test seen", 70.0, 86.6, 84.6, has_tricks=True),
)
BENCHMARKS_2 = tuple(dict.fromkeys(each.benchmark for each in TABLE_2))

# A split of Table 2 -> its names in results.json.
_NAMES = {
    "test-dev": ("test-dev",),
    "test-std": ("test-std",),
    "test": ("test", "Karpathy test"),
    "valid": ("val",),
    "test seen": ("seen test",),
}


def column_of(benchmark: str, split: str) -> FineTuned | None:
    """Returns the column of Table 2 for a result on a split; None if the table has none.

    Args:
        benchmark: name of the benchmark.
        split: as in results.json.
    """
    for each in TABLE_2:
        if each.benchmark == benchmark and split in _NAMES[each.split]:
            return each
    return None
