"""SEED-Bench, image part: choice of one of four answers by likelihood (arXiv 2307.16125).

As in the official code, the model ranks the texts of the answers, which the prompt does not list.
The 14,233 questions are of nine dimensions, which results have as groups; the total is over all
questions. The other three dimensions of the file are of videos, and no part of this benchmark.
There is no training split, and so no support example. No benchmark of the Flamingo paper.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.inference.prompt import Image

_CHOICES = {letter.upper(): f"choice_{letter}" for letter in "abcd"}
_FIELDS: dict[str, Types] = {
    "question_id": (str, int),
    "question": str,
    "data_id": str,
    "data_type": str,
    "question_type_id": int,
    "answer": str,
}


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads the questions about images; () for training."""
    if split == "train":
        return ()
    value, path = files.json(*files.annotations[split]), files.annotation_path(split)
    value = value if isinstance(value, dict) else {}
    types = value.get("question_type")
    if not isinstance(types, dict) or not all(isinstance(each, int) for each in types.values()):
        raise files.wrong(path, "no names of question types", "question_type: {name: number}")
    dimensions = {number: name for name, number in types.items()}
    found = records(value.get("questions"), _FIELDS, path)
    shown = [each for each in found if each["data_type"] == "image"]
    if not shown:
        raise files.wrong(path, "no questions about images", "those of SEED-Bench-1")
    texts: dict[str, Types] = dict.fromkeys(_CHOICES.values(), str)
    records(shown, texts, path)
    folder = files.folder(*files.folders, of=shown[0]["data_id"])
    return [_item(files, path, each, folder, dimensions) for each in shown]


def _item(
    files: Files, path: Path, asked: dict[str, Any], folder: Path, dimensions: dict[int, str]
) -> Item:
    dimension = dimensions.get(asked["question_type_id"])
    if asked["answer"] not in _CHOICES or dimension is None:
        got = (
            f"the answer {asked['answer']!r} and the type {asked['question_type_id']} of question "
            f"{asked['question_id']}"
        )
        raise files.wrong(path, got, "A to D, and a type that has a name")
    candidates = tuple(one_line(asked[name]) for name in _CHOICES.values())
    return Item(
        id=str(asked["question_id"]),
        visual=Image(f"{folder}/{asked['data_id']}"),
        prefix=question(asked["question"]),
        answer=candidates["ABCD".index(asked["answer"])],
        candidates=candidates,
        extra={"groups": [dimension]},
    )


SEED_IMAGE = Benchmark(
    name="seed_image",
    title="SEED-Image",
    metrics=(RANKING,),
    visual="image",
    queries="SEED-Bench-1, images",
    files={"test": ("SEED-Bench.json",)},
    folders=("SEED-Bench-image", "seed_bench_image"),
    download="huggingface.co/datasets/AILab-CVC/SEED-Bench (SEED-Bench.json, SEED-Bench-image.zip)",
    layout="""
        SEED-Bench.json
        SEED-Bench-image/
          1454426_2591111986, ...   (no suffix)
    """,
    items=_items,
    chance=0.25,
    max_shots=0,
    beyond_max_shots="SEED-Bench has no training split, and so no support examples.",
    is_of_paper=False,
)
