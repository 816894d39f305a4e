"""Retrieval with a contrastive model, image to text and text to image.

Recall at 1, 5 and 10 (paper, Tables 9 and 11).

    coco_retrieval        the 5,000 test images of the Karpathy split, with five captions each;
                          found among all of them
    flickr30k_retrieval   the same with its 1,000 test images
    world_retrieval       test pictures of the demo's world, in batches of 64 different scenes;
                          found within the batch

All captions of an image are right, and the one with the best rank counts; a caption has one right
image. A few images of COCO have more than five captions: the first five are taken, as is usual.

In the world captions repeat, and "a X and a Y" means the same as "a Y and a X". So each scene (the
objects, in any order) is in a batch only once. The pictures are those of `test_images` with one and
with two objects, which no training split has; the seed decides their order. A picture with a scene
that is already in the batch waits for the next batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flamingo_jax.core.notation import Float, Int
from flamingo_jax.core.seeds import generator
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.benchmarks.contrastive_task import CUTOFFS, DIRECTIONS, RECALLS
from flamingo_jax.evaluation.comparison import Comparison, Encoders
from flamingo_jax.evaluation.draws import draw_queries
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.ranks import ranks, recall
from flamingo_jax.evaluation.world_tasks import read_albums
from flamingo_jax.world.text import caption

CAPTIONS = 5  # of an image
BATCH = 64  # pictures of the world that are compared with each other


def make(data: Mapping[str, str], protocol: Protocol, *, benchmark: Benchmark) -> Retrieval:
    """Makes the retrieval task of a benchmark.

    Raises:
        TaskError: its directory is not given, or the protocol asks for support examples or for
            another split.
    """
    name = f"{benchmark.name}_retrieval"
    task.check_has_no_supports(name, protocol)
    place = task.directory(data, benchmark.name, name)
    split = benchmark.split("test")
    return Retrieval(name, benchmark.at(place).test, benchmark.name, protocol, split=split)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Retrieval among the captioned images of a benchmark.

    Attributes:
        name: name of the task.
        items: reads the benchmark: images with their captions as references.
        queries: random stream of the choice of images: that of the benchmark's few-shot task.
        protocol: how many images are compared, and the seed that chooses them.
        metrics: RECALLS.
        split: name of the split that the images are from.
    """

    name: str
    items: Callable[[], Sequence[Item]]
    queries: str
    protocol: Protocol = Protocol()
    metrics: tuple[str, ...] = RECALLS
    split: str = "test"

    def check(self) -> None:
        """Draws the images; see `ComparisonTask.check`."""
        self._drawn()

    def _drawn(self) -> list[Item]:
        return draw_queries(self.items(), self.protocol, task_name=self.name, stream=self.queries)

    def compare(self, model: Encoders) -> Comparison:
        """Compares `protocol.n` images with all of their captions; 0: all images.

        Raises:
            TaskError: there are fewer images.
            PromptError: an image cannot be read.
        """
        chosen = self._drawn()
        images = model.images([item.visual for item in chosen if item.visual is not None])
        captions = [text for item in chosen for text in item.references[:CAPTIONS]]
        owners = np.repeat(
            np.arange(len(chosen)), [len(item.references[:CAPTIONS]) for item in chosen]
        )
        both = both_ways(images, model.texts(captions), owners)
        return Comparison(
            recalls(*both),
            len(chosen),
            predictions=_predictions([item.id for item in chosen], *both),
        )


@dataclasses.dataclass(frozen=True)
class WorldRetrieval:
    """Retrieval within batches of the world's test pictures.

    Attributes:
        directory: the world, as data_pipelines wrote it; `test_images` is read.
        protocol: how many pictures are compared, and the seed that chooses them.
    """

    directory: str
    protocol: Protocol = Protocol()
    name: str = "world_retrieval"
    metrics: tuple[str, ...] = RECALLS
    split: str = "test"

    def check(self) -> None:
        """Fills the batches; see `ComparisonTask.check`."""
        self._drawn()

    def compare(self, model: Encoders) -> Comparison:
        """Compares as many whole batches as `protocol.n` pictures fill (0: all that can be filled).

        Fewer than 64 pictures are one batch.

        Raises:
            TaskError: there are fewer pictures, or too few scenes for a batch.
        """
        rows, size = self._drawn()
        images = model.images([picture for _, picture, _ in rows])
        texts = model.texts([caption(objects) for _, _, objects in rows])
        owners = np.arange(size)
        found = [
            both_ways(images[start : start + size], texts[start : start + size], owners)
            for start in range(0, len(rows), size)
        ]
        both = [np.concatenate(ways) for ways in zip(*found, strict=True)]
        return Comparison(
            recalls(*both),
            len(rows),
            predictions=_predictions([name for name, _, _ in rows], *both),
        )

    def _drawn(self) -> tuple[list[tuple[str, bytes, np.ndarray]], int]:
        """Returns (name, picture, attributes of its objects) of each, and the size of a batch."""
        n, seed = self.protocol.n, self.protocol.seed
        albums = read_albums(self.directory)
        pictures = [
            (f"{pool}/{place}", albums[pool].images[place], albums[pool].attributes[place])
            for pool in ("test_one", "test_two")
            for place in range(len(albums[pool].images))
        ]
        if not 0 <= n <= len(pictures):
            raise task.TaskError(
                f"task {self.name!r}: got n={n}; {self.directory} has {len(pictures)} test "
                f"pictures. Take n from 1 to {len(pictures)}, or 0 for all."
            )
        order = generator(seed, f"{self.name}/queries", 0).permutation(len(pictures)).tolist()
        size = min(n, BATCH) or BATCH
        batches = distinct_batches(
            [_scene(pictures[place][2]) for place in order], size, n // size if n else None
        )
        if not batches or (n and len(batches) < n // size):
            raise task.TaskError(
                f"task {self.name!r}: the {len(pictures)} test pictures of {self.directory} fill "
                f"{len(batches)} batches of {size} different scenes; expected {n // size or 1}. "
                "Take a smaller n, or make a world with more test pictures."
            )
        return [pictures[order[place]] for batch in batches for place in batch], size


def both_ways(
    images: Float[np.ndarray, "n J"],
    captions: Float[np.ndarray, "c J"],
    owners: Int[np.ndarray, "c"],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "c"]]:
    """Returns the rank of each image's first right caption, and of each caption's right image.

    Ranks are from 0.

    Args:
        images: embeddings of length 1.
        captions: embeddings of length 1.
        owners: index of each caption's image.
    """
    numbers = np.arange(len(images))
    return ranks(images, captions, numbers, owners), ranks(captions, images, owners, numbers)


def recalls(
    image_to_text: Int[np.ndarray, "n"], text_to_image: Int[np.ndarray, "c"]
) -> dict[str, float]:
    """Returns the values of RECALLS, 0..1, from the ranks of `both_ways`."""
    found = zip(DIRECTIONS, (image_to_text, text_to_image), strict=True)
    values = [recall(ranks, k) for _, ranks in found for k in CUTOFFS]
    return dict(zip(RECALLS, values, strict=True))


def distinct_batches(scenes: Sequence[Any], size: int, most: int | None = None) -> list[list[int]]:
    """Cuts a sequence into batches without a repeated scene.

    A picture with a scene that is already in the batch waits for the next batch.

    Args:
        scenes: the scene of each picture, in the order in which pictures are taken.
        size: pictures per batch. The last pictures that do not fill a batch are left out.
        most: number of batches; None: all that can be filled.

    Returns:
        The batches, as indices of `scenes`.
    """
    batches: list[list[int]] = []
    waiting = list(range(len(scenes)))
    while len(waiting) >= size and (most is None or len(batches) < most):
        batch: dict[Any, int] = {}
        left = []
        for at, place in enumerate(waiting):
            if len(batch) == size:
                left += waiting[at:]
                break
            if scenes[place] in batch:
                left.append(place)
            else:
                batch[scenes[place]] = place
        if len(batch) < size:
            break
        batches.append(list(batch.values()))
        waiting = left
    return batches


def _scene(attributes: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Returns the objects, int[O, 3], as a value that does not depend on their order."""
    return tuple(sorted(map(tuple, attributes.tolist())))


def _predictions(
    ids: Sequence[str], image_to_text: np.ndarray, text_to_image: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the rank, from 1, of each image's first right caption.

    If images have one caption each, the rank of the image among all images is added.
    """
    found = [
        {"query_id": name, "caption_rank": int(rank) + 1}
        for name, rank in zip(ids, image_to_text, strict=True)
    ]
    if len(text_to_image) == len(ids):
        for each, rank in zip(found, text_to_image, strict=True):
            each["image_rank"] = int(rank) + 1
    return found


def _make_world(data: Mapping[str, str], protocol: Protocol) -> WorldRetrieval:
    task.check_has_no_supports("world_retrieval", protocol)
    return WorldRetrieval(task.directory(data, "world", "world_retrieval"), protocol)


TASKS: dict[str, task.TaskFactory] = {
    "world_retrieval": _make_world,
}
