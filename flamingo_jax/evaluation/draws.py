"""Draws the queries and the support set of a benchmark (paper, B.1.4).

    training split --seed--> | test supports | validation supports | validation queries | rest |
                               2048            2048                  COCO 5000, others 1024
                              (32              32                    10 of each class)

A training split that has fewer items than the support set is taken whole.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
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
    counts = collections.Counter(item.id for item in queries)
    if repeated := [name for name, count in counts.most_common(3) if count > 1]:
        raise task.TaskError(
            f"task {task_name!r}: {len(queries) - len(counts)} queries have the id of another one, "
            f"such as {', '.join(repeated)}; expected an id for each. The annotation file holds "
            "them twice: take the official one."
        )
    return queries


def draw_from_training(
    benchmark: Benchmark, train: Sequence[Item], labels: Sequence[str], protocol: Protocol
) -> TrainingDraw:
    """Draws the support set, and the queries of the validation split.

    The shuffled training split, or each class of it, is cut into test supports, validation supports
    and validation queries.

    Args:
        benchmark: gives its name and the number of its validation queries.
        train: the training split.
        labels: the class of each of its items; () where they have no classes.
        protocol: the sizes, the seed and the split.

    Raises:
        TaskError: there are too few items.
    """
    rng = generator(protocol.seed, f"{benchmark.name}/train", 0)
    groups: dict[str, list[int]] = {}
    for index in rng.permutation(len(train)).tolist():
        groups.setdefault(labels[index] if labels else "", []).append(index)
    num_supports = protocol.num_support_per_class if labels else protocol.num_support
    num_queries = VALIDATION_QUERIES_PER_CLASS if labels else benchmark.validation_queries
    supports: list[Item] = []
    queries: list[Item] = []
    for label, group in groups.items():
        with_answer = (item for item in map(train.__getitem__, group) if item.answer)
        of_test = list(itertools.islice(with_answer, num_supports))
        if protocol.split == "test":
            supports += of_test
            continue
        of_validation = list(itertools.islice(with_answer, num_supports))
        asked = list(itertools.islice(with_answer, num_queries))
        if len(asked) < num_queries:
            found = len(of_test) + len(of_validation) + len(asked)
            raise task.TaskError(
                f"task {benchmark.name!r}: split=validation needs {num_supports} test supports, as "
                f"many validation supports and {num_queries} queries from "
                f"{'each class of ' if labels else ''}the training split, which share none; got "
                f"{found} items{f' of {label!r}' if labels else ''}. Lower "
                f"{'num_support_per_class' if labels else 'num_support'}, or give the whole "
                "training split."
            )
        supports += of_validation
        queries += asked
    return TrainingDraw(supports, queries)
