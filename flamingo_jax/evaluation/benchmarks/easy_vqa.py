"""easy-VQA: questions about a picture of one shape; exact match on the test split.

The data are part of the package `easy-vqa` of PyPI: 4,000 pictures of 64 x 64 pixels with 38,575
questions, and 1,000 with 9,673 for the test. It is no benchmark of the paper. launch/easy_vqa.sh
trains on it from nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.exact_match import TOP1
from flamingo_jax.inference.prompt import Image

_ROOTS = ("", "data/", "easy_vqa/data/")  # the directory is the data, the package, or above it


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 38,575 training questions, or 9,673 test questions."""
    path, found = files.annotation_path(split), files.json(*files.annotations[split])
    expected = "a list of [question, answer, number of the picture]"
    if not isinstance(found, list) or not found:
        raise files.wrong(path, "no list of questions", expected)
    for number, each in enumerate(found):
        if not isinstance(each, list) or [type(value) for value in each] != [str, str, int]:
            raise files.wrong(path, f"{each!r:.60} as question {number}", expected)
    folder = files.folder(*(f"{root}{split}/images" for root in _ROOTS), of=f"{found[0][2]}.png")
    return [_item(each, folder, split) for each in found]


def _item(asked: list[Any], folder: Path, split: FileSplit) -> Item:
    text, answer, number = asked
    return Item(
        id=f"{split}/{number}/{one_line(text)}",  # no picture has a question twice
        visual=Image(f"{folder}/{number}.png"),
        prefix=sys.intern(question(text)),
        answer=sys.intern(one_line(answer)),
        references=(sys.intern(one_line(answer)),),
    )


EASY_VQA = Benchmark(
    name="easy_vqa",
    title="easy-VQA",
    metrics=(TOP1,),
    visual="image",
    queries="test",
    files={
        split: tuple(f"{root}{split}/questions.json" for root in _ROOTS)
        for split in ("train", "test")
    },
    download="pypi.org/project/easy-vqa (pip install easy-vqa; the folder data of the package)",
    layout="""
        train/
          questions.json
          images/
            0.png, ...
        test/
          questions.json
          images/
            0.png, ...
    """,
    items=_items,
    is_of_paper=False,
)
