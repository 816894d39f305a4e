"""Flickr30k captions: CIDEr on the 1,000 test images of the Karpathy split (paper, Table 6)."""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.evaluation.benchmarks import karpathy_splits
from flamingo_jax.evaluation.benchmarks.annotations import Files, FileSplit
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, Series, at_shots
from flamingo_jax.evaluation.benchmarks.contrastive_task import ContrastiveTask, recalls
from flamingo_jax.evaluation.metrics.cider import CIDER


def _items(files: Files, split: FileSplit) -> Sequence[Item]:
    """Reads 29,000 training images, or 1,000 test images."""
    chosen = karpathy_splits.images(files, split, dataset="flickr30k", key="imgid")
    folder = files.folder(*files.folders, of=chosen[0]["filename"])
    return karpathy_splits.items(chosen, lambda each: f"{folder}/{each['filename']}", "imgid")


FLICKR30K = Benchmark(
    name="flickr30k",
    title="Flickr30k",
    metrics=(CIDER,),
    visual="image",
    queries="Karpathy test",
    splits=karpathy_splits.SPLITS,
    # of both splits
    files={"train": ("dataset_flickr30k.json",), "test": ("dataset_flickr30k.json",)},
    folders=("flickr30k-images", "flickr30k_images", "images"),
    download="cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip) and "
    "shannon.cs.illinois.edu/DenotationGraph (the images, on request)",
    layout="""
        dataset_flickr30k.json
        flickr30k-images/
          1000092795.jpg, ...
    """,
    items=_items,
    published=(
        *at_shots(
            {
                "Flamingo-3B": (60.6, 72.0, 71.7, 73.4, 71.2),
                "Flamingo-9B": (61.5, 72.6, 73.4, 72.7, 72.8),
                "Flamingo-80B": (67.2, 75.1, 78.2, 78.9, 75.4),
                "OpenFlamingo-3B": (52.3, 57.2, 58.6, 59.2, 61.1),
                "OpenFlamingo-3B-I": (51.2, 59.1, 60.7, 63.0, 64.5),
                "OpenFlamingo-4B": (53.6, 60.7, 55.9, 56.8, 56.9),
                "OpenFlamingo-4B-I": (55.6, 61.2, 59.0, 54.8, 53.0),
                "OpenFlamingo-9B": (59.5, 65.8, 62.9, 62.8, 61.3),
                "IDEFICS-9B": (27.3, 59.7, 61.9, 64.5, 64.4),
                "IDEFICS-80B": (53.7, 73.7, 76.6, 80.1, 81.1),
            }
        ),
        Series("OpenFlamingo-9B", {4: 52.2, 32: 63.0}, "rices"),
    ),
    fine_tuned_sota=67.4,
    contrastive=ContrastiveTask(
        "retrieval",
        queries="the 1,000 of Karpathy's test split",
        published=recalls({"contrastive NFNet-F6": (89.3, 98.8, 99.7, 79.5, 95.3, 97.9)}),
    ),
)
