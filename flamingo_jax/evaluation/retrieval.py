"""Retrieval with a contrastive model, image to text and text to image.

Recall at 1, 5 and 10 (paper, Tables 9 and 11).

    coco_retrieval, flickr30k_retrieval   the 5,000 and 1,000 test images of the Karpathy split with five captions each; found among all of them
    world_retrieval                       test pictures of the demo's world, in batches of 64 different scenes; found within the batch

An image's right captions are all of its own, the first of which counts; a caption's right image is
its one. Of the few images of COCO with more than five captions the first five are taken, as is
usual.

In the world captions repeat, and "a X and a Y" says no other thing than "a Y and a X": in a batch
every scene (the objects, whatever their order) is there once. The pictures are those of
`test_images` with one and with two objects, which no training split has, in an order that the seed
decides; a picture whose scene the batch has already waits for the next.
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
        TaskError: its directory is not given, or it is asked for what it does not have.
    """
    name = f"{benchmark.name}_retrieval"
    task.check_has_no_supports(name, protocol)
    place = task.directory(data, benchmark.name, name)
    return Retrieval(name, benchmark.at(place).test, benchmark.name, protocol)


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Retrieval among the captioned images of a benchmark.

    Attributes:
        name: of the task.
        items: reads the benchmark: images with their captions as references.
        queries: name of the stream from which the images are drawn: that of the benchmark's
            few-shot task.
        protocol: how many images are compared, and the seed that chooses them.
        metrics: RECALLS.
    """

    name: str
    items: Callable[[], Sequence[Item]]
    queries: str
    protocol: Protocol = Protocol()
    metrics: tuple[str, ...] = RECALLS

    def compare(self, model: Encoders) -> Comparison:
        """Compares `protocol.n` images with all of their captions; 0: all images.

        Raises:
            TaskError: there are fewer.
            PromptError: one of them cannot be read.
        """
        chosen = draw_queries(self.items(), self.protocol, task_name=self.name, stream=self.queries)
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
        directory: of the world, as data_pipelines wrote it; `test_images` is read.
        protocol: how many pictures are compared, and the seed that chooses them.
    """

    directory: str
    protocol: Protocol = Protocol()
    name: str = "world_retrieval"
    metrics: tuple[str, ...] = RECALLS

    def compare(self, model: Encoders) -> Comparison:
        """Compares as many whole batches as `protocol.n` pictures fill (0: all that can be filled).

        Fewer than 64 pictures are one batch.

        Raises:
            TaskError: there are not as many pictures, or too few scenes for a batch.
        """
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
        rows = [order[place] for batch in batches for place in batch]
        images = model.images([pictures[row][1] for row in rows])
        texts = model.texts([caption(pictures[row][2]) for row in rows])
        own = np.arange(size)
        found = [
            both_ways(images[start : start + size], texts[start : start + size], own)
            for start in range(0, len(rows), size)
        ]
        both = [np.concatenate(ways) for ways in zip(*found, strict=True)]
        return Comparison(
            recalls(*both),
            len(rows),
            predictions=_predictions([pictures[row][0] for row in rows], *both),
        )


def both_ways(
    images: Float[np.ndarray, "n J"],
    captions: Float[np.ndarray, "c J"],
    owners: Int[np.ndarray, "c"],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "c"]]:
    """The place, from 0, of the first right caption of each image, and of the right image of each caption.

    Args:
        images: embeddings of length 1.
        captions: embeddings of length 1.
        owners: number of each caption's image.
    """
    numbers = np.arange(len(images))
    return ranks(images, captions, numbers, owners), ranks(captions, images, owners, numbers)


def recalls(
    image_to_text: Int[np.ndarray, "n"], text_to_image: Int[np.ndarray, "c"]
) -> dict[str, float]:
    """The values of RECALLS, 0..1, from what `both_ways` gives."""
    found = zip(DIRECTIONS, (image_to_text, text_to_image), strict=True)
    values = [recall(ranks, k) for _, ranks in found for k in CUTOFFS]
    return dict(zip(RECALLS, values, strict=True))


def distinct_batches(scenes: Sequence[Any], size: int, most: int | None = None) -> list[list[int]]:
    """Cuts a sequence into batches in which no scene is there twice.

    Who cannot join a batch waits for the next.

    Args:
        scenes: what is pictured, in the order in which pictures are taken.
        size: of a batch; what is left at the end and fills none is left out.
        most: number of batches; None: all that can be filled.

    Returns:
        Places in `scenes`.
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
    """int[O, 3] -> the objects, whatever their order."""
    return tuple(sorted(map(tuple, attributes.tolist())))


def _predictions(
    ids: Sequence[str], image_to_text: np.ndarray, text_to_image: np.ndarray
) -> list[dict[str, Any]]:
    """Of each image the place of its first caption.

    With one caption per image the place of the image, too.
    """
    found = [
        {"query_id": name, "caption_rank": int(rank) + 1}
        for name, rank in zip(ids, image_to_text, strict=True)
    ]
    if len(text_to_image) == len(ids):
        found = [
            {**each, "image_rank": int(rank) + 1}
            for each, rank in zip(found, text_to_image, strict=True)
        ]
    return found


def _make_world(data: Mapping[str, str], protocol: Protocol) -> WorldRetrieval:
    task.check_has_no_supports("world_retrieval", protocol)
    return WorldRetrieval(task.directory(data, "world", "world_retrieval"), protocol)


TASKS: dict[str, task.TaskFactory] = {
    "world_retrieval": _make_world,
}
