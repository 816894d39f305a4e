"""ImageNet-1k classification by ranking the class names (paper, Tables 6 and 7).

The metric is the top-1 accuracy on the validation split.

    <image>Output: tench<EOC><image>Output:        -> a score of each of the 1,000 names

The directory has a folder of training images per class, or a dataset that TFDS prepared
(imagenet2012, or imagenet2012_subset/10pct, in ArrayRecord). Support examples are drawn per class:
for that, the whole training split of a TFDS dataset is read once for its labels (about 140 GB; the
10% subset is enough).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core.paths import Path
from flamingo_jax.data import tfds_files
from flamingo_jax.data.files import without_clutter
from flamingo_jax.evaluation.benchmarks import class_templates, imagenet_classes
from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError, Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, LazyItems, Series
from flamingo_jax.evaluation.benchmarks.contrastive_task import ContrastiveTask
from flamingo_jax.evaluation.benchmarks.templates import OUTPUT
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.inference.prompt import Deferred, Image, Visual


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 1,281,167 training images, or 50,000 validation images; makes items on request."""
    if tfds_files.is_prepared(files.directory):
        return _prepared(files, {"train": "train", "test": "validation"}[split])
    if split == "train":
        return _in_folders(files, split, _classes(files))
    folder = _folder(files, split)
    names = _classes(files)
    has_folders = any((folder / id).is_dir() for id in names)
    items = _in_folders(files, split, names) if has_folders else _by_list(files, folder, names)
    if (first := items[0].id).startswith("n") and first[1:9].isdecimal():
        raise files.wrong(
            folder, f"images of the training split ({first})", "ILSVRC2012_val_*.JPEG"
        )
    return items


def _folder(files: Files, split: FileSplit) -> Path:
    (name,) = files.splits[split]
    return files.path(name, f"ILSVRC/Data/CLS-LOC/{name}")


def _classes(files: Files) -> dict[str, str]:
    """Returns {WordNet id: name}, in the order of the ids, which are the training folders."""
    folder = _folder(files, "train")
    ids = [path.name for path, is_folder in without_clutter(folder) if is_folder]
    if not ids:
        raise files.wrong(folder, "no folders", "a folder of images per class, such as n01440764")
    return imagenet_classes.names(files, ids)


def _in_folders(files: Files, split: FileSplit, names: Mapping[str, str]) -> LazyItems:
    """Reads a folder of images per class."""
    root = _folder(files, split)
    folders = [path for path, is_folder in without_clutter(root) if is_folder]
    found = [(path.name, name) for path in folders for name in _images(path)]
    if unknown := {id for id, _ in found} - set(names):
        raise files.wrong(
            root, f"a class {min(unknown)} that train/ has not", "the classes of train/"
        )
    if not found:
        raise files.wrong(root, "folders without images", "a folder of images per class")
    files.check_ids(root, (name.rpartition(".")[0] for _, name in found))
    make = functools.partial(_item, candidates=_candidates(names), names=names)
    return LazyItems(
        len(found),
        lambda at: make(found[at][1], Image(f"{root}/{'/'.join(found[at])}"), found[at][0]),
    )


def _by_list(files: Files, folder: Path, names: Mapping[str, str]) -> LazyItems:
    """Reads the validation images of one folder, as the official archive has them."""
    classes = imagenet_classes.validation_classes(files)
    found = _images(folder)
    if not found:
        raise files.missing("val/ILSVRC2012_val_00000001.JPEG")
    if lacking := [name for name in found if classes.get(name) not in names]:
        raise files.wrong(
            folder, f"{lacking[0]}, of which no list says the class", "ILSVRC2012_val_*.JPEG"
        )
    files.check_ids(folder, (name.rpartition(".")[0] for name in found))
    make = functools.partial(_item, candidates=_candidates(names), names=names)
    return LazyItems(
        len(found), lambda at: make(found[at], Image(f"{folder}/{found[at]}"), classes[found[at]])
    )


def _prepared(files: Files, split: str) -> LazyItems:
    try:
        examples = tfds_files.examples(files.directory, split)
        ids = tfds_files.class_names(files.directory)
    except ValueError as error:
        raise AnnotationError(
            f"the benchmark 'imagenet': {error} Expected the builder imagenet2012."
        ) from error
    names = imagenet_classes.names(files, ids)
    return LazyItems(
        len(examples), functools.partial(_prepared_item, examples, ids, names, _candidates(names))
    )


def _images(folder: Path) -> list[str]:
    """Returns the sorted names of the images in a folder, without other files."""
    return [
        path.name
        for path, is_folder in without_clutter(folder)
        if not is_folder and path.name.lower().endswith((".jpeg", ".jpg", ".png"))
    ]


def _candidates(names: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names.values()))


def _item(
    file: str, visual: Visual, id: str, *, candidates: tuple[str, ...], names: Mapping[str, str]
) -> Item:
    return Item(
        id=file.rpartition(".")[0],
        visual=visual,
        prefix=OUTPUT,
        answer=names[id],
        references=(names[id],),
        candidates=candidates,
        label=id,
    )


def _prepared_item(
    examples: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    names: Mapping[str, str],
    candidates: tuple[str, ...],
    index: int,
) -> Item:
    example = examples[index]
    file = example["file_name"].decode()
    visual = Deferred(f"imagenet2012/{file}", functools.partial(_picture, examples, index))
    return _item(file, visual, ids[int(example["label"])], candidates=candidates, names=names)


def _picture(examples: Sequence[Mapping[str, Any]], index: int) -> bytes:
    return examples[index]["image"]


IMAGENET = Benchmark(
    name="imagenet",
    title="ImageNet",
    metrics=(RANKING,),
    visual="image",
    queries="val",
    splits={"train": ("train",), "test": ("val",)},
    download="image-net.org/download (ILSVRC2012) or kaggle.com (ImageNet Object Localization "
    "Challenge)",
    layout="""
        train/        (or ILSVRC/Data/CLS-LOC/train)
          n01440764/
            n01440764_10026.JPEG, ...
          ..., a folder per class
        val/          (or ILSVRC/Data/CLS-LOC/val)
          n01440764/
            ILSVRC2012_val_00000293.JPEG, ...
          ..., or all images in val/ itself, with LOC_val_solution.csv or
          ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt
        LOC_synset_mapping.txt        (or ILSVRC2012_devkit_t12/data/meta.mat, or classes.txt)
        or the directory of a TFDS dataset imagenet2012, with dataset_info.json, and
        LOC_synset_mapping.txt or classes.txt
    """,
    items=_items,
    chance=1 / imagenet_classes.NUM_CLASSES,
    published=(
        Series("contrastive NFNet-F6", {0: 77.9}, ""),
        Series("Flamingo-3B", {8: 70.9, 16: 71.0}, "rices", "1 per class"),
        Series("Flamingo-3B", {16: 72.7}, "rices", "5 per class"),
        Series("Flamingo-9B", {8: 71.2, 16: 71.7}, "rices", "1 per class"),
        Series("Flamingo-9B", {16: 75.2}, "rices", "5 per class"),
        Series("Flamingo-80B", {16: 66.4}, "random", "at most 0.02 per class"),
        Series("Flamingo-80B", {8: 71.9, 16: 71.7}, "rices", "1 per class"),
        Series("Flamingo-80B", {16: 76.0}, "rices", "5 per class"),
        Series("Flamingo-80B", {16: 77.3}, "rices", "5 per class, ensembling"),
        Series("IDEFICS-9B", {16: 53.5}),
        Series("IDEFICS-80B", {16: 65.4}),
        Series("IDEFICS-9B", {16: 64.5}, "rices", "5,000 support examples"),
        Series("IDEFICS-80B", {16: 72.9}, "rices", "5,000 support examples"),
    ),
    table=7,
    fine_tuned_sota=91.0,
    zero_few_shot_sota=85.7,
    contrastive=ContrastiveTask(
        "zero_shot",
        queries="the validation split",
        metrics=("top1", "top5"),
        templates=class_templates.IMAGES,
        published={
            "NFNet-F0, LTIP": {"top1": 40.8},
            "NFNet-F0, ALIGN": {"top1": 35.2},
            "NFNet-F0, accumulation": {"top1": 45.6},
            "NFNet-F0, data merged": {"top1": 38.6},
            "NFNet-F0, round-robin": {"top1": 41.2},
        },
    ),
)
