"""ScienceQA: questions of school, with or without a picture (Lu et al., arXiv 2209.09513).

    Question: Which is a magnet? Context: Look at it. Options: (A) iron (B) wood Answer: A

The task is close-ended: the model ranks the letters of two to five options. `scienceqa` has all
4,241 test questions, `scienceqa_img` the 2,017 with a picture, and its support examples have one
too. Results have the official groups: natural, social and language science (NAT, SOC, LAN), context
in text, as a picture, or none (TXT, IMG, NO), and grades (G1-6, G7-12). Lectures and solutions are
not used. No benchmark of the Flamingo paper.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import (
    Files,
    FileSplit,
    Types,
    one_line,
    records,
)
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.templates import LETTERS, options
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.inference.prompt import Image

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
_FIELDS: dict[str, Types] = {
    "question": str,
    "choices": list,
    "answer": int,
    "hint": str,
    "image": (str, type(None)),
    "subject": str,
    "grade": str,
    "split": str,
}
_GRADE = re.compile(r"grade(\d{1,2})")


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    return _read(files, split, with_picture=False)


def _pictured(files: Files, split: FileSplit) -> Sequence[Item]:
    return _read(files, split, with_picture=True)


def _read(files: Files, split: FileSplit, *, with_picture: bool) -> list[Item]:
    """Reads 12,726 training questions, or 4,241 test questions; with a picture 6,218, or 2,017."""
    path = files.annotation_path(split)
    found = files.json(*files.annotations[split], unique_names=True)
    if not isinstance(found, dict) or not found:
        raise files.wrong(path, "no problems by id", "{id: problem}")
    records(list(found.values()), _FIELDS, path)
    (name,) = files.splits[split]
    chosen = {
        id: each
        for id, each in found.items()
        if each["split"] == name and (each["image"] or not with_picture)
    }
    if not chosen:
        raise files.wrong(path, f"no problems of {name}", f"some of {name}")
    shown = [(id, each["image"]) for id, each in chosen.items() if each["image"]]
    folder = None
    if shown:
        folder = files.folder(name, f"images/{name}", of="/".join(shown[0]))
    return [_item(files, path, id, each, folder) for id, each in chosen.items()]


def _item(
    files: Files, path: Path, id: str, problem: Mapping[str, Any], folder: Path | None
) -> Item:
    choices, answer = problem["choices"], problem["answer"]
    letters = tuple(LETTERS[: len(choices)])
    if not 0 <= answer < len(letters) or not all(isinstance(each, str) for each in choices):
        got = f"the answer {answer} of problem {id}, with {len(choices)} choices"
        raise files.wrong(path, got, f"one of 2 to {len(LETTERS)} texts, counted from 0")
    grade = _GRADE.fullmatch(problem["grade"])
    if problem["subject"] not in SUBJECTS or not grade:
        got = f"the subject {problem['subject']!r} and grade {problem['grade']!r} of problem {id}"
        raise files.wrong(path, got, f"{', '.join(SUBJECTS)}, and grade1 to grade12")
    groups = [SUBJECTS[problem["subject"]], "G1-6" if int(grade[1]) <= 6 else "G7-12"]
    groups += ["TXT"] if problem["hint"] else []
    groups += ["IMG"] if problem["image"] else []
    groups += [] if problem["hint"] or problem["image"] else ["NO"]
    return Item(
        id=id,
        visual=Image(f"{folder}/{id}/{problem['image']}") if problem["image"] else None,
        prefix=options(problem["question"], list(map(one_line, choices)), problem["hint"]),
        answer=letters[answer],
        candidates=letters,
        extra={"groups": groups},
    )


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    metrics=(RANKING,),
    visual="image",
    queries="test",
    files={
        "train": ("problems.json", "data/scienceqa/problems.json"),  # of all splits
        "test": ("problems.json", "data/scienceqa/problems.json"),
    },
    download="scienceqa.github.io (problems.json, and the images of train and test)",
    layout="""
        problems.json
        train/
          1/
            image.png, ...
        test/
          5/
            image.png, ...
    """,
    items=_items,
    is_of_paper=False,
)
SCIENCEQA_IMG = dataclasses.replace(
    SCIENCEQA,
    name="scienceqa_img",
    title="ScienceQA-IMG",
    queries="test, with a picture",
    data="scienceqa",
    items=_pictured,
)
