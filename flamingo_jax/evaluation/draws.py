"""Draws the queries and the support set of a benchmark (paper, B.1.4).

    training split --seed--> | test supports | validation supports | validation queries | rest |
                               2048            2048                  COCO 5000, others 1024
                              (32              32                    10 of each class)

A training split that has fewer items than the support set is taken whole. The three sets share no
picture and no video, though a benchmark may have several questions about one.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flamingo_jax.core.seeds import generator
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.protocol import Protocol

# Of a benchmark without classes: `Benchmark.validation_queries`.
VALIDATION_QUERIES_PER_CLASS = 10


class TrainingDraw(NamedTuple):
    """The items drawn from the training split.

    Attributes:
        supports: the support set.
        queries: the validation queries; empty where the test split is evaluated.
    """

    supports: Sequence[Item] = ()
    queries: Sequence[Item] = ()


def draw_queries(
    items: Sequence[Item], protocol: Protocol, *, task_name: str, stream: str
) -> list[Item]:
    """Returns the queries of a task, `protocol.n` of them (0: all).

    Args:
        items: the evaluated split.
        protocol: its seed decides which items are drawn, and their order.
        task_name: name of the task, for messages.
        stream: name of the random stream; tasks with the same stream get the same queries.

    Raises:
        TaskError: there are fewer items than `protocol.n`, or two items have the same id.
    """
    n = protocol.n
    if not 0 <= n <= len(items) or not len(items):
        raise task.TaskError(
            f"task {task_name!r}: got n={n}; its {protocol.split} split has {len(items)} queries. "
            "Take n from 1 to that number, or 0 for all."
        )
    rng = generator(protocol.seed, f"{stream}/queries", 0)
    queries = [items[int(index)] for index in rng.permutation(len(items))[: n or len(items)]]
    _check_ids(queries, task_name, "queries")
    return queries


def labels_of(train: Sequence[Item]) -> tuple[str, ...]:
    """Returns the class of each training item; () if they have no classes."""
    has_classes = len(train) > 0 and train[0].label
    return tuple(item.label for item in train) if has_classes else ()


def draw_from_training(
    benchmark: Benchmark, train: Sequence[Item], labels: Sequence[str], protocol: Protocol
) -> TrainingDraw:
    """Draws the support set, and the queries of the validation split.

    The shuffled training split, or each class of it, is cut into test supports, validation supports
    and validation queries. No two of the three show the same picture or video.

    Args:
        benchmark: gives its name and the number of its validation queries.
        train: the training split.
        labels: the class of each of its items; () where they have no classes.
        protocol: the sizes, the seed and the split.

    Raises:
        TaskError: there are too few items, or two items have the same id.
    """
    rng = generator(protocol.seed, f"{benchmark.name}/train", 0)
    groups: dict[str, list[int]] = {}
    for index in rng.permutation(len(train)).tolist():
        groups.setdefault(labels[index] if labels else "", []).append(index)
    num_supports = protocol.num_support_per_class if labels else protocol.num_support
    num_queries = VALIDATION_QUERIES_PER_CLASS if labels else benchmark.validation_queries
    sizes = (num_supports, num_supports, num_queries)
    parts = {label: _parts(group, train, sizes) for label, group in groups.items()}
    drawn: dict[str, list[list[Item]]] = {label: [] for label in groups}
    owner: dict[str, int] = {}  # what an item shows -> the part that has it
    for part in range(1 if protocol.split == "test" else len(sizes)):
        for label, places in parts.items():
            fitting = (
                item
                for item in map(train.__getitem__, places[part])
                if item.answer and owner.setdefault(item.shown, part) == part
            )
            drawn[label].append(list(itertools.islice(fitting, sizes[part])))
    everything = [item for found in drawn.values() for part in found for item in part]
    _check_ids(everything, benchmark.name, "training items")
    if protocol.split == "test":
        return TrainingDraw([item for found in drawn.values() for item in found[0]])
    for label, found in drawn.items():
        if len(found[-1]) < num_queries:
            raise task.TaskError(
                f"task {benchmark.name!r}: split=validation needs {num_supports} test supports, as "
                f"many validation supports and {num_queries} queries from "
                f"{'each class of ' if labels else ''}the training split, which share no picture; "
                f"got {sum(map(len, found))} items{f' of {label!r}' if labels else ''}. Lower "
                f"{'num_support_per_class' if labels else 'num_support'}, or give the whole "
                "training split."
            )
    supports = [item for found in drawn.values() for item in found[1]]
    return TrainingDraw(supports, [item for found in drawn.values() for item in found[2]])


def _parts(
    group: Sequence[int], train: Sequence[Item], sizes: tuple[int, ...]
) -> list[Iterator[int]]:
    """Returns the places in the training split from which each set is drawn, in shuffled order.

    Where each item shows a picture of its own, the sets follow each other. Where several items show
    one, all pictures are shared out between the sets first, in proportion to their sizes: so a set
    is not drawn from a few pictures with many items, and leaves enough pictures to the others.
    """
    in_turn = iter(group)
    if not isinstance(train, list):  # items are made on request: there is one of each picture
        return [in_turn] * len(sizes)
    answered = [index for index in group if train[index].answer]
    counts = collections.Counter(train[index].shown for index in answered)
    total, wanted = len(answered), sum(sizes)
    if len(counts) == total or total < wanted:
        return [in_turn] * len(sizes)
    ends = list(itertools.accumulate(sizes))
    home, shared_out = dict[str, int](), 0
    for name, count in counts.items():  # in the order of their first items
        home[name] = next(
            part for part, end in enumerate(ends) if shared_out * wanted < end * total
        )
        shared_out += count
    places: list[list[int]] = [[] for _ in sizes]
    for index in answered:
        places[home[train[index].shown]].append(index)
    return [iter(each) for each in places]


def _check_ids(items: Sequence[Item], task_name: str, what: str) -> None:
    counts = collections.Counter(item.id for item in items)
    if repeated := [name for name, count in counts.most_common(3) if count > 1]:
        raise task.TaskError(
            f"task {task_name!r}: {len(items) - len(counts)} {what} have the id of another one, "
            f"such as {', '.join(repeated)}; expected an id for each. The annotation file holds "
            "them twice: take the official one."
        )
