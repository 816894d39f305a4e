"""TextVQA: VQA accuracy on the validation split (paper, Table 6).

The model reads the text in the images: the prompt has no OCR.

Some images of OpenImages are stored rotated, and only its list of images has their rotation
(textvqa.org says to look there). If the directory has that list, the images are turned upright;
else they are shown as stored.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from flamingo_jax.core.paths import Path, regular
from flamingo_jax.data.images import colours
from flamingo_jax.data.images.read import FORMATS
from flamingo_jax.evaluation.benchmarks.annotations import (
    Files,
    FileSplit,
    Types,
    most_common,
    one_line,
    records,
)
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, Series, at_shots
from flamingo_jax.evaluation.benchmarks.templates import question
from flamingo_jax.evaluation.metrics.vqa_accuracy import VQA_ACCURACY
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.prompt import Deferred, Image, Visual

ROTATIONS = ("train_images/rotation.csv", "train-images-boxable-with-rotation.csv")


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 34,602 training questions, or 5,000 validation questions."""
    value, path = files.json(*files.annotations[split]), files.annotation_path(split)
    fields: dict[str, Types] = {
        "question_id": (int, str),
        "image_id": str,
        "question": str,
        "answers": list,
    }
    found = records(value.get("data") if isinstance(value, dict) else None, fields, path)
    (subset,) = files.splits[split]
    if wrong := {each.get("set_name", subset) for each in found} - {subset}:
        raise files.wrong(
            path, f"questions of the split {', '.join(sorted(wrong))}", f"of {subset}"
        )
    folder = files.folder(*files.folders, of=f"{found[0]['image_id']}.jpg")
    turns = _quarter_turns(files)
    return [_item(each, folder, turns) for each in found]


def _quarter_turns(files: Files) -> Mapping[str, int]:
    """Reads {image id: counterclockwise quarter turns that set the image upright}.

    Upright images are left out.
    """
    if not any(files.has(name) for name in ROTATIONS):
        return {}
    turns = {}
    # Its titles are free text; only the two columns are read.
    for row in files.csv(*ROTATIONS, columns=("ImageID", "Rotation"), strict=False):
        try:
            degrees = float(row["Rotation"] or 0)
        except ValueError:
            degrees = 1.0
        if degrees % 90:
            raise files.wrong(
                files.path(*ROTATIONS),
                f"the rotation {row['Rotation']!r}",
                "multiples of 90 degrees",
            )
        if degrees % 360:
            turns[row["ImageID"]] = int(degrees // 90)
    return turns


def _item(record: dict[str, Any], folder: Path, turns: Mapping[str, int]) -> Item:
    path, number = f"{folder}/{record['image_id']}.jpg", turns.get(record["image_id"], 0)
    visual: Visual = Image(path)
    if number:
        visual = Deferred(
            f"{path} turned by {90 * number} degrees",
            functools.partial(_turned, path, number),
            source=lambda: identity(Image(path)) + bytes([number]),
        )
    return Item(
        id=str(record["question_id"]),
        visual=visual,
        prefix=question(record["question"]),
        answer=one_line(most_common(record["answers"])),
        references=tuple(record["answers"]),
        extra={"question_id": record["question_id"]},
        source=record["image_id"],
    )


def _turned(path: str, turns: int) -> np.ndarray:
    """Reads an image and turns it counterclockwise.

    The orientation that a camera stored in the file is ignored: the list has the rotation of the
    stored pixels.
    """
    encoded = io.BytesIO(regular(path).read_bytes())
    with PIL.Image.open(encoded, formats=FORMATS) as image:
        pixels = np.asarray(colours.to_rgb_or_rgba(image))
    return np.ascontiguousarray(np.rot90(pixels, turns))


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    metrics=(VQA_ACCURACY,),
    visual="image",
    queries="val",
    splits={"train": ("train",), "test": ("val",)},
    files={"train": ("TextVQA_0.5.1_train.json",), "test": ("TextVQA_0.5.1_val.json",)},
    folders=("train_images", "images/train_images"),  # of both splits
    download="textvqa.org/dataset (v0.5.1), and the rotations from "
    "storage.googleapis.com/openimages (2018_04/train)",
    layout="""
        TextVQA_0.5.1_train.json
        TextVQA_0.5.1_val.json
        train_images/        (the images of train and of val)
          003a8ae2ef43b901.jpg, ...
        train-images-boxable-with-rotation.csv        (optional)
    """,
    items=_items,
    published=(
        *at_shots(
            {
                "Flamingo-3B": (30.1, 32.7, 32.4, 31.8, 30.6),
                "Flamingo-9B": (31.8, 33.6, 33.6, 33.5, 32.6),
                "Flamingo-80B": (35.0, 36.5, 37.3, 37.6, 37.9),
                "OpenFlamingo-3B": (24.2, 27.0, 27.7, 28.0, 28.3),
                "OpenFlamingo-3B-I": (23.1, 28.1, 29.1, 29.1, 28.5),
                "OpenFlamingo-4B": (21.0, 25.9, 21.3, 18.2, 14.1),
                "OpenFlamingo-4B-I": (21.1, 27.2, 25.1, 23.2, 23.2),
                "OpenFlamingo-9B": (24.2, 28.2, 29.1, 27.3, 23.8),
                "IDEFICS-9B": (25.9, 27.6, 27.5, 27.9, 28.3),
                "IDEFICS-80B": (30.9, 34.4, 35.7, 36.3, 36.7),
            }
        ),
        Series("OpenFlamingo-9B", {4: 34.2, 32: 31.1}, "rices"),
    ),
    fine_tuned_sota=54.7,
)
