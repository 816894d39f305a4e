"""Reads the training split of a benchmark, and draws its validation queries.

It runs in the launcher alone: the benchmarks are part of the evaluation, which imports jax. The
workers get plain paths and texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.benchmarks.records import (
    BenchmarkExample,
    BenchmarkPicture,
    BenchmarkRequest,
    LeftOut,
    Unit,
)
from flamingo_jax.evaluation import registry
from flamingo_jax.evaluation.benchmarks.benchmark import Benchmark, Item
from flamingo_jax.evaluation.draws import draw_from_training, labels_of
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.task import TaskError, UnknownTaskError
from flamingo_jax.inference.visuals import Deferred, Image, Video

_PICTURES = {"image": 512, "video": 32}  # of a unit, which becomes one file


class TrainingUnits(NamedTuple):
    """The units of a benchmark.

    Attributes:
      units: pictures with their examples, and what its reader has left out.
      are_videos: True if its items show videos.
    """

    units: list[Unit]
    are_videos: bool


def training_units(request: BenchmarkRequest) -> TrainingUnits:
    """Reads the training split of a benchmark.

    Raises:
      TaskError: there is no such benchmark, one of its files is missing or damaged, it has too few
        examples for the validation queries, or an item shows nothing.
    """
    if request.task not in registry.BENCHMARKS:
        raise UnknownTaskError(request.task, sorted(registry.BENCHMARKS))
    benchmark = registry.BENCHMARKS[request.task].at(request.input)
    are_videos = benchmark.visual == "video"
    if are_videos and request.form == "pages":
        raise TaskError(
            f"benchmark: {request.task} shows videos, and a page has pictures: take another --form."
        )
    train, left_out = benchmark.train_and_left_out()
    queries = _validation_queries(request, benchmark, train) if request.validation else []
    held_back = {item.shown for item in queries}
    ids = frozenset(item.id for item in queries)

    shown: dict[tuple[str, object], list[Item]] = {}
    without = 0
    for item in train:
        if item.visual is None:
            without += 1
            continue
        # Segments of one video are held back together, and stored apart.
        shown.setdefault((item.shown, _key(item)), []).append(item)
    pictures = [
        _picture(items, held_back=name in held_back, queries=ids)
        for (name, _), items in shown.items()
    ]
    size = _PICTURES[benchmark.visual]
    units: list[Unit] = [
        tuple(pictures[start : start + size]) for start in range(0, len(pictures), size)
    ]
    units += [LeftOut(reason, number) for reason, number in left_out.items()]
    units += [LeftOut("no_picture", without)] if without else []
    return TrainingUnits(units, are_videos)


def _validation_queries(
    request: BenchmarkRequest, benchmark: Benchmark, train: Sequence[Item]
) -> Sequence[Item]:
    protocol = Protocol(split="validation", seed=request.seed, num_support=request.num_support)
    try:
        return draw_from_training(benchmark, train, labels_of(train), protocol).queries
    except TaskError as error:
        raise TaskError(f"{error} Or take --novalidation.") from error


def _key(item: Item) -> object:
    visual = item.visual
    return (os.fspath(visual.path), visual.start, visual.end) if isinstance(visual, Video) else ""


def _picture(
    items: Sequence[Item], *, held_back: bool, queries: frozenset[str]
) -> BenchmarkPicture:
    visual = items[0].visual
    read: Callable[[], bytes | np.ndarray] | None = None
    span, path = None, ""
    if isinstance(visual, Deferred):
        read = visual.read
    elif isinstance(visual, Image | Video):
        path = os.fspath(visual.path)
        span = (visual.start, visual.end) if isinstance(visual, Video) else None
    else:
        raise TaskError(f"benchmark: the item {items[0].id!r} shows nothing that can be stored.")
    return BenchmarkPicture(
        name=items[0].shown,
        path=path,
        read=read,
        span=span,
        examples=tuple(map(_example, items)),
        held_back=held_back,
        queries=queries & {item.id for item in items},
    )


def _example(item: Item) -> BenchmarkExample:
    # Candidates have the form of `answer`; references may have another. OK-VQA shows raw answers.
    references = () if item.candidates else item.extra.get("raw_answers") or item.references
    return BenchmarkExample(
        item.id, item.turns or (item.prefix,), item.answer, tuple(references) or (item.answer,)
    )
