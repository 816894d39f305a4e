"""GQA: exact match on the balanced test-dev questions (Hudson and Manning, arXiv 1902.09506).

    binary    verify, logical, choose, compare: the answer is one of two that the question allows
    open      query: it is any word

The 12,578 questions of test-dev have public answers, which others report. Of the official metrics
there are the accuracy, of binary and open questions and of each type, and the distribution.
Consistency, validity, plausibility and grounding need predictions or files that the balanced
questions do not come with. No benchmark of the Flamingo paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.gqa_accuracy import GQA_ACCURACY, GQA_DISTRIBUTION
from flamingo_jax.inference.prompt import Image

_FIELDS = {"imageId": str, "question": str, "answer": str, "types": dict, "groups": dict}


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 943,000 training questions, or 12,578 of test-dev."""
    path = files.annotation_path(split)
    found = files.json(*files.annotations[split], unique_names=True)
    if not isinstance(found, dict) or not found:
        raise files.wrong(path, "no questions by id", "{id: question}")
    asked = records(list(found.values()), _FIELDS, path)
    folder = files.folder(*files.folders, of=f"{asked[0]['imageId']}.jpg")
    return [_item(files, path, *each, folder) for each in found.items()]


def _item(files: Files, path: Path, id: str, asked: dict[str, Any], folder: Path) -> Item:
    structure, meaning = (asked["types"].get(name) for name in ("structural", "semantic"))
    if not isinstance(structure, str) or not isinstance(meaning, str):
        raise files.wrong(path, f"the types {asked['types']} of question {id}", "their names")
    answer = sys.intern(one_line(asked["answer"]))
    groups = ["open" if structure == "query" else "binary"]
    groups += [f"structure: {structure}", f"meaning: {meaning}"]
    return Item(
        id=id,
        visual=Image(f"{folder}/{asked['imageId']}.jpg"),
        prefix=question(asked["question"]),
        answer=answer,
        references=(answer,),
        extra={"groups": list(map(sys.intern, groups)), "kind": asked["groups"].get("global")},
        source=asked["imageId"],
    )


GQA = Benchmark(
    name="gqa",
    title="GQA",
    metrics=(GQA_ACCURACY, GQA_DISTRIBUTION),
    visual="image",
    queries="test-dev, balanced",
    splits={"train": ("train_balanced",), "test": ("testdev_balanced",)},
    files={
        "train": ("train_balanced_questions.json", "questions/train_balanced_questions.json"),
        "test": ("testdev_balanced_questions.json", "questions/testdev_balanced_questions.json"),
    },
    folders=("images",),
    download="cs.stanford.edu/people/dorarad/gqa/download.html (questions 1.2, and the images)",
    layout="""
        train_balanced_questions.json
        testdev_balanced_questions.json
        images/
          2405722.jpg, n578345.jpg, ...
    """,
    items=_items,
    is_of_paper=False,
)
