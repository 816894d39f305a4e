"""Zero-shot classification with a contrastive model.

The class with the sentences most similar to the picture (paper, B.1.3 and Table 7).

    picture or clip --image encoder--> v          of a clip the mean over its frames
    class name --templates--text encoder--> t of each sentence --mean, length 1--> the class
                                                  (prompt ensembling, after CLIP)
    answer: the class with the largest cosine; of equal ones the first class

    imagenet_zero_shot        top-1 accuracy on the validation split
    kinetics700_zero_shot     the mean of top-1 and top-5 accuracy on the validation split
    world_zero_shot           the demo's test pictures of one object, among the 56 pairs of colour
                              and shape of training

The images, class names and queries are those of the few-shot tasks of these benchmarks: with the
same n and seed the queries are the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flamingo_jax.core.notation import Float
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.benchmarks import class_templates
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item, LazyItems
from flamingo_jax.evaluation.comparison import Comparison, Encoders
from flamingo_jax.evaluation.draws import draw_queries
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.ranks import ranks, recall
from flamingo_jax.evaluation.world_tasks import read_albums
from flamingo_jax.world.scenes import COLOUR, COLOURS, SEEN, SHAPE, SHAPES, SIZES

_SHOWN = 5  # classes of a line of predictions.jsonl


def make(data: Mapping[str, str], protocol: Protocol, *, benchmark: Benchmark) -> ZeroShot:
    """Makes the zero-shot task that a benchmark declares in `contrastive`.

    Raises:
        TaskError: its directory is not given, the protocol asks for support examples or for another
            split, or the file of templates cannot be read.
    """
    name = f"{benchmark.name}_zero_shot"
    task.check_has_no_supports(name, protocol)
    place = task.directory(data, benchmark.name, name)
    about = benchmark.contrastive
    assert about is not None, f"{benchmark.name} declares no zero-shot task"
    templates = class_templates.read(protocol.templates) if protocol.templates else about.templates
    return ZeroShot(
        name,
        benchmark.at(place).test,
        templates,
        about.metrics,
        benchmark.name,
        protocol,
        split=benchmark.split("test"),
    )


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Classification among the candidates of its items.

    Attributes:
        name: name of the task.
        items: reads the benchmark: pictures or clips, each with its class and all classes.
        templates: sentences around the name of a class.
        metrics: some of "top1", "top5" and "top1_top5" (their mean); the one that papers report is
            the first.
        queries: random stream of the choice of queries: that of the benchmark's few-shot task.
        protocol: how many are classified, and the seed that chooses them.
        split: name of the split that they are from.
    """

    name: str
    items: Callable[[], Sequence[Item]]
    templates: tuple[str, ...]
    metrics: tuple[str, ...]
    queries: str
    protocol: Protocol = Protocol()
    split: str = "test"

    def check(self) -> None:
        """Draws the queries; see `ComparisonTask.check`."""
        self._drawn()

    def _drawn(self) -> list[Item]:
        return draw_queries(self.items(), self.protocol, task_name=self.name, stream=self.queries)

    def compare(self, model: Encoders) -> Comparison:
        """Classifies `protocol.n` pictures or clips; 0: all.

        Raises:
            TaskError: there are fewer pictures or clips.
            PromptError: a picture or a clip cannot be read.
        """
        chosen = self._drawn()
        classes = chosen[0].candidates
        index = {name: number for number, name in enumerate(classes)}
        weights = class_embeddings(model, classes, self.templates)
        images = model.images([item.visual for item in chosen if item.visual is not None])
        groups = np.array([index[item.answer] for item in chosen])
        found = ranks(images, weights, groups, np.arange(len(classes)))
        top1, top5 = recall(found, 1), recall(found, 5)
        values = {"top1": top1, "top5": top5, "top1_top5": (top1 + top5) / 2}
        return Comparison(
            values={name: values[name] for name in self.metrics},
            n=len(chosen),
            templates=len(self.templates),
            predictions=[
                _prediction(item, row @ weights.T) for item, row in zip(chosen, images, strict=True)
            ],
        )


def class_embeddings(
    model: Encoders, classes: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "classes J"]:
    """Returns the embedding of each class: the mean over its sentences, scaled to length 1.

    Args:
        model: the encoders.
        classes: the names of the classes.
        templates: see `class_templates`.
    """
    sentences = [sentence for name in classes for sentence in class_templates.fill(templates, name)]
    mean = model.texts(sentences).reshape(len(classes), len(templates), -1).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)


def _prediction(item: Item, scores: Float[np.ndarray, "classes"]) -> dict[str, Any]:
    best = np.argsort(-scores, kind="stable")[:_SHOWN].tolist()
    return {
        "query_id": item.id,
        "answer": item.answer,
        "candidates": [item.candidates[place] for place in best],
        "scores": [round(float(scores[place]), 4) for place in best],
    }


def _world_items(directory: str) -> Sequence[Item]:
    album = read_albums(directory)["test_one"]
    names = {pair: f"{COLOURS[pair[COLOUR]]} {SHAPES[pair[SHAPE]]}" for pair in SEEN}
    candidates = tuple(names.values())

    def item(place: int) -> Item:
        colour, shape = album.attributes[place, 0, [COLOUR, SHAPE]].tolist()
        answer = names[colour, shape]
        return Item(
            f"test_one/{place}", album.images[place], "", answer, (answer,), candidates, answer
        )

    return LazyItems(len(album.images), item)


def _make_world(data: Mapping[str, str], protocol: Protocol) -> ZeroShot:
    task.check_has_no_supports("world_zero_shot", protocol)
    place = task.directory(data, "world", "world_zero_shot")
    # The world's captions name the size, the colour and the shape of a thing.
    templates = tuple(f"a {size} {{}}" for size in SIZES)
    if protocol.templates:
        templates = class_templates.read(protocol.templates)
    items = functools.partial(_world_items, place)
    return ZeroShot("world_zero_shot", items, templates, ("top1", "top5"), "world", protocol)


TASKS: dict[str, task.TaskFactory] = {"world_zero_shot": _make_world}
