"""Captions in the splits of Karpathy and Li (2015), the usual ones for COCO and Flickr30k.

One JSON file has all images of a dataset, each with its split and its captions:

    {"dataset": "coco",
     "images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg",
                 "cocoid": 391895, "imgid": 0, "split": "train" | "val" | "test" | "restval",
                 "sentences": [{"raw": "A man on a bike.", ...}, ...]}, ...]}

"restval" is the rest of COCO's validation images, of which val and test take 5,000 each. It is
usual to train on it, so support examples come from it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, one_line, records
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.inference.prompt import Image, Visual

SPLITS: dict[FileSplit, tuple[str, ...]] = {"train": ("train", "restval"), "test": ("test",)}


def images(files: Files, split: FileSplit, *, dataset: str, key: str) -> list[dict[str, Any]]:
    """Reads the images of a split, as the file has them.

    Args:
        files: the benchmark's directory.
        split: "train" or "test".
        dataset: expected name of the dataset in the file, "coco" or "flickr30k".
        key: field with the id of an image.

    Raises:
        AnnotationError: the file is missing, is of another dataset, or has no images of the split.
    """
    value, path = files.json(*files.annotations[split]), files.annotation_path(split)
    value = value if isinstance(value, dict) else {}
    if (got := value.get("dataset", dataset)) != dataset:
        raise files.wrong(path, f"the captions of {got!r}", f"those of {dataset!r}")
    found = records(value.get("images"), {"filename": str, "split": str, "sentences": list}, path)
    # Of all splits: an image of two splits would be a query and a support.
    files.check_ids(path, (each.get(key, each["filename"]) for each in found))
    chosen = [image for image in found if image["split"] in files.splits[split]]
    if not chosen:
        there = ", ".join(sorted({image["split"] for image in found}))
        raise files.wrong(
            path, f"images of {there} alone", f"images of {' and '.join(files.splits[split])}"
        )
    for image in chosen:
        records(image["sentences"], {"raw": str}, path)
    return chosen


def caption_item(id: str, visual: Visual, captions: Sequence[str]) -> Item:
    """Returns an image with its captions; a support example shows the first caption."""
    return Item(
        id=id,
        visual=visual,
        prefix=OUTPUT,
        answer=one_line(captions[0]),
        references=tuple(captions),
    )


def items(
    chosen: Sequence[dict[str, Any]], image: Callable[[dict[str, Any]], str], key: str
) -> list[Item]:
    """Returns the items of images.

    Args:
        chosen: what `images` returned.
        image: record -> file of the image.
        key: field with the id of an image.
    """
    return [
        caption_item(
            str(each.get(key, each["filename"])),
            Image(image(each)),
            [s["raw"] for s in each["sentences"]],
        )
        for each in chosen
    ]
