"""Hateful Memes: area under the ROC curve of P(yes) on the seen test split (paper, Table 6).

    <image>is an image with written: "look who is here" on it. Is it hateful? Answer: no

No other benchmark has the text of the image in its prompt. The task is close-ended: the model ranks
"yes" and "no".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, Types, records
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, Series, at_shots
from flamingo_jax.evaluation.benchmarks.templates import hateful_meme
from flamingo_jax.evaluation.metrics.roc_auc import ROC_AUC
from flamingo_jax.inference.prompt import Image

ANSWERS = ("yes", "no")  # of labels 1 and 0


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 8,500 training memes, or the 1,000 memes of the seen test split."""
    found = _records(files, split)
    if split == "test":
        train = {each["id"] for each in _records(files, "train")}
        if shared := [each["id"] for each in found if each["id"] in train]:
            got = f"{len(shared)} memes that are in train.jsonl too (meme {shared[0]})"
            raise files.wrong(files.annotation_path("test"), got, "other memes than train.jsonl")
    return [_item(files, each) for each in found]


def _records(files: Files, split: FileSplit) -> list[dict[str, Any]]:
    fields: dict[str, Types] = {"id": (int, str), "img": str, "label": int, "text": str}
    path = files.annotation_path(split)
    found = records(files.json_lines(*files.annotations[split]), fields, path)
    if wrong := [each["label"] for each in found if each["label"] not in (0, 1)]:
        raise files.wrong(path, f"the label {wrong[0]}", "0 or 1")
    files.path(found[0]["img"])
    return found


def _item(files: Files, record: dict[str, Any]) -> Item:
    answer = ANSWERS[1 - record["label"]]
    return Item(
        id=str(record["id"]),
        visual=Image(f"{files.directory}/{record['img']}"),
        prefix=hateful_meme(record["text"]),
        answer=answer,
        references=(answer,),
        candidates=ANSWERS,
        extra={"positive": "yes"},
    )


HATEFUL_MEMES = Benchmark(
    name="hateful_memes",
    title="HatefulMemes",
    metrics=(ROC_AUC,),
    visual="image",
    queries="seen test",
    files={"train": ("train.jsonl",), "test": ("test_seen.jsonl",)},
    download="hatefulmemeschallenge.com (the data of phase 1 and 2, with the labels of the test "
    "split)",
    layout="""
        train.jsonl
        test_seen.jsonl
        img/
          42953.png, ...
    """,
    items=_items,
    chance=0.5,
    published=(
        *at_shots(
            {
                "Flamingo-3B": (53.7, 53.6, 54.7, 55.3, 56.3),
                "Flamingo-9B": (57.0, 62.7, 63.9, 64.5, 63.5),
                "Flamingo-80B": (46.4, 68.6, 70.0, 70.0, 70.0),
                "OpenFlamingo-3B": (51.2, 50.6, 52.0, 48.5, 50.2),
                "OpenFlamingo-3B-I": (50.1, 49.5, 50.7, 48.7, 47.8),
                "OpenFlamingo-4B": (52.3, 51.5, 55.2, 54.5, 52.2),
                "OpenFlamingo-4B-I": (53.1, 54.9, 58.5, 56.9, 54.9),
                "OpenFlamingo-9B": (51.6, 54.0, 54.7, 53.9, 53.8),
                "IDEFICS-9B": (51.7, 50.7, 51.0, 50.9, 49.8),
                "IDEFICS-80B": (60.6, 57.8, 58.2, 55.8, 52.5),
            }
        ),
        Series("OpenFlamingo-9B", {4: 70.1, 32: 73.6}, "rices"),
    ),
    fine_tuned_sota=79.1,  # of v2 of the paper; v1 has 75.4
    zero_few_shot_sota=66.1,
)
