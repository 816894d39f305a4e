"""What a benchmark declares for contrastive models.

Zero-shot classification (paper, B.1.3 and Table 7) and retrieval (paper, Tables 9 and 11).
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
        kind: "zero_shot" classification among the candidates of the items, or "retrieval" among
            their references.
        queries: what the paper evaluates on.
        metrics: names of values, the one that papers report first.
        templates: of "zero_shot": sentences around the name of a class, see `class_templates`.
        published: model -> metric -> percent. A model that `Benchmark.published` has without
            support examples comes before these.
    """

    kind: Literal["zero_shot", "retrieval"]
    queries: str
    metrics: tuple[str, ...] = RECALLS
    templates: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def recalls(lines: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Returns the rows of a table over RECALLS.

    Args:
        lines: model -> recall at 1, 5, 10 of image to text, then of text to image.
    """
    return {model: dict(zip(RECALLS, line, strict=True)) for model, line in lines.items()}
