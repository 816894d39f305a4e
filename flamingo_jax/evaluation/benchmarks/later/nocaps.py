"""NoCaps: CIDEr on pictures of OpenImages, by domain (Agrawal et al., arXiv 1812.08658).

    in-domain     the objects of the picture are all among COCO's
    near-domain   some are
    out-domain    none is

`nocaps` has the 4,500 validation pictures, whose captions are public; others report it where they
make no submission. The captions of the 10,600 test pictures are hidden: `nocaps_test` writes
OUTPUT/submissions/nocaps_test-SHOTS.json for eval.ai. Models may train on COCO's captions alone, so
support examples are those of COCO's train2017. CIDEr of a domain weighs words by the captions of
this domain, as its evaluation by itself does. No benchmark of the Flamingo paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit, records
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.karpathy_splits import caption_item
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.evaluation.metrics.cider import CIDER
from flamingo_jax.inference.prompt import Image

DOMAINS = ("in-domain", "near-domain", "out-domain")


def _items(files: Files, split: FileSplit) -> list[Item]:
    """Reads 118,287 pictures of COCO, 4,500 of validation, or 10,600 of the test."""
    value, path = files.json(*files.annotations[split]), files.annotation_path(split)
    value = value if isinstance(value, dict) else {}
    found = records(value.get("images"), {"id": int, "file_name": str}, path)
    captions: dict[int, list[str]] = {}
    is_hidden = split == "test" and "annotations" not in value
    if not is_hidden:
        fields = {"image_id": int, "caption": str}
        for each in records(value.get("annotations"), fields, path):
            captions.setdefault(each["image_id"], []).append(each["caption"])
        if lacking := [each["id"] for each in found if each["id"] not in captions]:
            raise files.wrong(
                path, f"no captions of {len(lacking)} pictures (picture {lacking[0]})", "of each"
            )
    elif files.splits[split] != ("test",):
        raise files.wrong(path, "pictures without captions", "those of val")
    (name,) = files.splits[split]
    folder = files.folder(f"images/{name}", name, of=found[0]["file_name"])
    if split == "train":
        return [
            caption_item(str(each["id"]), _image(folder, each), captions[each["id"]])
            for each in found
        ]
    return [_query(files, path, each, folder, captions) for each in found]


def _image(folder: Path, record: Mapping[str, Any]) -> Image:
    return Image(f"{folder}/{record['file_name']}")


def _query(
    files: Files,
    path: Path,
    record: Mapping[str, Any],
    folder: Path,
    captions: Mapping[int, list[str]],
) -> Item:
    extra: dict[str, Any] = {"image_id": record["id"]}
    if captions:
        if record.get("domain") not in DOMAINS:
            got = f"the domain {record.get('domain')!r} of picture {record['id']}"
            raise files.wrong(path, got, f"one of {', '.join(DOMAINS)}")
        extra["groups"] = [record["domain"]]
    return Item(
        id=str(record["id"]),
        visual=_image(folder, record),
        prefix=OUTPUT,
        answer="",
        references=tuple(captions.get(record["id"], ())),
        extra=extra,
        source=f"nocaps/{record['id']}",  # COCO's numbers are other pictures
    )


NOCAPS = Benchmark(
    name="nocaps",
    title="NoCaps",
    metrics=(CIDER,),
    visual="image",
    queries="val",
    splits={"train": ("train2017",), "test": ("val",)},
    files={
        "train": ("captions_train2017.json", "annotations/captions_train2017.json"),
        "test": ("nocaps_val_4500_captions.json",),
    },
    download="nocaps.org/download (annotations, and the pictures by their coco_url) and "
    "cocodataset.org (2017 Train images and annotations)",
    layout="""
        captions_train2017.json
        nocaps_val_4500_captions.json
        nocaps_test_image_info.json        (nocaps_test alone)
        images/
          train2017/
            000000000009.jpg, ...
          val/
            0013ea2087020901.jpg, ...
          test/        (nocaps_test alone)
            0001eeaf4aed83f9.jpg, ...
    """,
    items=_items,
    is_of_paper=False,
)
NOCAPS_TEST = dataclasses.replace(
    NOCAPS,
    name="nocaps_test",
    queries="test",
    data="nocaps",
    splits={**NOCAPS.splits, "test": ("test",)},
    files={**NOCAPS.files, "test": ("nocaps_test_image_info.json",)},
)
