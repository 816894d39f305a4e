"""Flickr30k captions: CIDEr on the 1,000 test images of the Karpathy split (paper, Table 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from flamingo_jax.core.paths import PathLike
from flamingo_jax.evaluation.benchmarks import karpathy_splits
from flamingo_jax.evaluation.benchmarks.annotations import Files
from flamingo_jax.evaluation.benchmarks.benchmark import Item

DOWNLOAD = (
    "cs.stanford.edu/people/karpathy/deepimagesent (caption_datasets.zip) and "
    "shannon.cs.illinois.edu/DenotationGraph (the images, on request)"
)
LAYOUT = """
dataset_flickr30k.json
flickr30k-images/
  1000092795.jpg, ...
"""


@dataclasses.dataclass(frozen=True)
class Flickr30k:
    """Flickr30k in `directory`."""

    directory: PathLike
    name: ClassVar[str] = "flickr30k"
    metrics: ClassVar[tuple[str, ...]] = ("cider",)
    chance: ClassVar[float | None] = None
    max_shots: ClassVar[int] = 32

    def train(self) -> Sequence[Item]:
        """The 29,000 training images."""
        return self._items("train")

    def test(self) -> Sequence[Item]:
        """The 1,000 test images."""
        return self._items("test")

    def _items(self, split: str) -> Sequence[Item]:
        files = Files(self.directory, self.name, DOWNLOAD, LAYOUT)
        chosen = karpathy_splits.images(files, "dataset_flickr30k.json", dataset="flickr30k", split=split)
        folder = files.folder("flickr30k-images", "flickr30k_images", "images", of=chosen[0]["filename"])
        return karpathy_splits.items(chosen, lambda each: f"{folder}/{each['filename']}", "imgid")
