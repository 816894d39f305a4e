"""The annotation format of visualqa.org, in which VQAv2 and OK-VQA are published.

A split has a file of questions and a file of annotators' answers.

    questions    {"data_subtype": "val2014",
                  "questions": [{"image_id": 42, "question": "What is it?",
                                 "question_id": 42000}, ...]}
    annotations  {"data_subtype": "val2014",
                  "annotations": [{"question_id": 42000, "question_type", "answer_type",
                                   "multiple_choice_answer",
                                   "answers": [{"answer": "bear", "answer_id": 1}, ... ten]}, ...]}

A test split has only questions: the evaluation server has its answers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import (
    Files,
    FileSplit,
    most_common,
    one_line,
    records,
)
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.inference.prompt import Image

_QUESTION = {"image_id": int, "question": str, "question_id": int}


def question_ids(files: Files, questions: str, *, subtype: str) -> list[int]:
    """Reads the ids of all questions of a file.

    Args:
        files: the benchmark's directory.
        questions: name of the file.
        subtype: expected name of the split in the file, such as "test2015".

    Raises:
        AnnotationError: the file is missing, damaged, or of another split.
    """
    return [
        each["question_id"] for each in _records(files, questions, "questions", _QUESTION, subtype)
    ]


def items(
    files: Files, split: FileSplit, annotations: str | None, *, images: str, shown: str
) -> list[Item]:
    """Reads the questions of a split, in the order of their file.

    Args:
        files: the benchmark's directory. `files.annotations` has the files of questions,
            `files.splits` the names of the splits in the files ("train2014", "test-dev2015").
        split: "train" or "test".
        annotations: name of the file of answers; None if they are hidden.
        images: COCO's name of the images ("train2014", "val2014", "test2015"), which is the name of
            their folder and part of their file names.
        shown: field of an answer that support examples show; they show the most common one.

    Raises:
        AnnotationError: a file is missing, damaged, or of another split; or the folder of the
            images is missing.
    """
    (questions,), (subtype,) = files.annotations[split], files.splits[split]
    asked = _records(files, questions, "questions", _QUESTION, subtype)
    known: Mapping[int, dict[str, Any]] = {}
    if annotations is not None:
        fields = {"question_id": int, "answers": list}
        answered = _records(files, annotations, "annotations", fields, subtype)
        known = {each["question_id"]: each for each in answered}
        if len(known) < len(answered):
            files.check_ids(files.path(annotations), (each["question_id"] for each in answered))
        if lacking := [each["question_id"] for each in asked if each["question_id"] not in known]:
            raise files.wrong(
                files.path(annotations),
                f"no answers to {len(lacking)} of the questions (question {lacking[0]})",
                "all",
            )
    folder = files.folder(f"images/{images}", images, of=_file(images, asked[0]["image_id"]))
    try:
        return [
            _item(each, known.get(each["question_id"]), folder, images, shown) for each in asked
        ]
    except (KeyError, TypeError) as error:
        got = f"answers that are no objects with the text {shown!r} ({error!r})"
        raise files.wrong(
            files.path(annotations or questions), got, "the official annotations"
        ) from error


def _records(
    files: Files, name: str, key: str, fields: Mapping[str, type], subtype: str
) -> list[dict[str, Any]]:
    value, path = files.json(name), files.path(name)
    value = value if isinstance(value, dict) else {}
    if (got := value.get("data_subtype", subtype)) != subtype:
        raise files.wrong(path, f"the split {got!r}", f"the split {subtype!r}")
    return records(value.get(key), fields, path)


def _file(images: str, image_id: int) -> str:
    return f"COCO_{images}_{image_id:012d}.jpg"


def _item(
    asked: dict[str, Any], known: dict[str, Any] | None, folder: Path, images: str, shown: str
) -> Item:
    # There are half a million items: a path is a string, since a path object takes 1 kB, and equal
    # answers share one string.
    answers = known["answers"] if known else ()
    extra: dict[str, Any] = {"question_id": asked["question_id"]}
    for name in ("question_type", "answer_type"):
        if known and name in known:
            extra[name] = sys.intern(known[name])
    if shown != "answer":
        extra["raw_answers"] = [each[shown] for each in answers]
    return Item(
        id=str(asked["question_id"]),
        visual=Image(f"{folder}/{_file(images, asked['image_id'])}"),
        prefix=question(asked["question"]),
        answer=one_line(most_common([each[shown] for each in answers])),
        references=tuple(sys.intern(each["answer"]) for each in answers),
        extra=extra,
        source=sys.intern(str(asked["image_id"])),
    )
