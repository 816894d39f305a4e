"""A benchmark's task for contrastive models.

It is zero-shot classification (paper, B.1.3 and Table 7) or retrieval (paper, Tables 9 and 11).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

DIRECTIONS, CUTOFFS = ("image_to_text", "text_to_image"), (1, 5, 10)
RECALLS = tuple(f"{direction}_recall_at_{k}" for direction in DIRECTIONS for k in CUTOFFS)


@dataclasses.dataclass(frozen=True)
class ContrastiveTask:
    """The task NAME_KIND of a benchmark, such as "coco_retrieval".

    Attributes:
        kind: "zero_shot": classification among the candidates of the items; "retrieval": of their
            captions, and of images by captions.
        queries: the images that the paper evaluates on, as tables print it.
        metrics: names of the values; the one that papers report first.
        templates: sentences around the name of a class ("zero_shot"); see `class_templates`.
        published: model -> metric -> percent. Tables print the models that `Benchmark.published`
            has without support examples before these.
    """

    kind: Literal["zero_shot", "retrieval"]
    queries: str
    metrics: tuple[str, ...] = RECALLS
    templates: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def recalls(lines: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Returns the rows of a table with a column for each of RECALLS.

    Args:
        lines: model -> recall at 1, 5, 10 of image to text, then of text to image.
    """
    return {model: dict(zip(RECALLS, line, strict=True)) for model, line in lines.items()}
