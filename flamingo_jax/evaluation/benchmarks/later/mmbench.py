"""MMBench: choice among listed options, asked in every rotation of them (arXiv 2307.06281).

    Question: What is it? Context: a hint Options: (A) a cat (B) a dog (C) a cow Answer: B

Circular evaluation: a question counts as right if its answer is right in all of its rotations. The
official file has a row for each: a question, and its rotations under its index + 1,000,000 *
number. Pictures are in the file, in base64, or as the index of the row that has the picture.

Differs from the official evaluation: the model ranks the letters, so that no other model has to
read what it wrote. Only the dev split has public answers: a file of the test split is refused.
There is no training split, and so no support example. No benchmark of the Flamingo paper.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import (
    AnnotationError,
    Files,
    FileSplit,
    one_line,
)
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.templates import LETTERS, options
from flamingo_jax.evaluation.metrics.circular_accuracy import CIRCULAR_ACCURACY
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.inference.prompt import Deferred

_ROTATION = 1_000_000
_LONGEST_INDEX = 64  # characters; a picture is longer
_COLUMNS = ("index", "question", "A", "B", "image", "category")


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the rows of the dev split, 4,329 of 1,164 questions; () for training."""
    if split == "train":
        return ()
    path = files.annotation_path(split)
    rows = files.csv(*files.annotations[split], columns=_COLUMNS, delimiter="\t")
    if not rows:
        raise files.wrong(path, "no rows", "the questions of dev")
    if not all(row.get("answer") for row in rows):
        raise AnnotationError(
            f"the benchmark 'mmbench': {path} has questions without an answer: those of the test "
            "split are hidden, and its server takes no file that is written here. Take the file "
            "of the dev split."
        )
    if wrong := [row["index"] for row in rows if not _is_index(row["index"])]:
        raise files.wrong(path, f"the index {wrong[0]!r:.60}", "a number")
    files.check_ids(path, (int(row["index"]) for row in rows))
    indices = {int(row["index"]) for row in rows}
    if lacking := [index for index in indices if index % _ROTATION not in indices]:
        got = f"rotations without their question {lacking[0] % _ROTATION}"
        raise files.wrong(path, got, "a row of each question")
    if max(indices) < _ROTATION:
        raise files.wrong(path, "one row of each question", "a row of each rotation of its options")
    pictures = {row["index"]: row["image"] for row in rows}
    return [_item(files, path, row, pictures) for row in rows]


def _is_index(text: str) -> bool:
    return text.isdecimal() and len(text) <= _LONGEST_INDEX


def _item(files: Files, path: Path, row: Mapping[str, str], pictures: Mapping[str, str]) -> Item:
    index = row["index"]
    choices = [one_line(row.get(letter, "")) for letter in LETTERS]
    letters = tuple(LETTERS[: choices.index("") if "" in choices else len(choices)])
    if row["answer"] not in letters:
        got = f"the answer {row['answer']!r} of question {index}, with {len(letters)} options"
        raise files.wrong(path, got, f"one of {', '.join(letters) or 'them'}")
    encoded = row["image"]
    if len(encoded) <= _LONGEST_INDEX:
        encoded = pictures.get(encoded, "")
        if len(encoded) <= _LONGEST_INDEX:
            raise files.wrong(path, f"no picture of question {index}", "one in base64")
    question = str(int(index) % _ROTATION)
    groups = [f"ability: {row['category']}"]
    groups += [f"level 2: {row['l2-category']}"] if row.get("l2-category") else []
    return Item(
        id=index,
        visual=Deferred(f"mmbench/{index}", functools.partial(_decoded, path, index, encoded)),
        prefix=options(row["question"], choices[: len(letters)], row.get("hint", "")),
        answer=row["answer"],
        candidates=letters,
        extra={"question": question, "groups": groups},
        source=f"mmbench/{question}",
    )


def _decoded(path: Path, index: str, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise AnnotationError(
            f"the benchmark 'mmbench': {path}: the picture of question {index} is no base64 "
            f"({error}). Get the file again."
        ) from error


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench",
    metrics=(CIRCULAR_ACCURACY, RANKING),
    visual="image",
    queries="dev",
    files={
        "test": ("MMBench_DEV_EN.tsv", "MMBench_DEV_EN_V11.tsv", "mmbench_dev_20230712.tsv"),
    },
    download="github.com/open-compass/MMBench (MMBench_DEV_EN.tsv, or its V11)",
    layout="""
        MMBench_DEV_EN.tsv        (or MMBench_DEV_EN_V11.tsv, or mmbench_dev_20230712.tsv)
    """,
    items=_items,
    max_shots=0,
    beyond_max_shots="MMBench has no training split, and so no support examples.",
    is_whole=True,
    is_of_paper=False,
)
