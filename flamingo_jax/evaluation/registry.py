"""All benchmarks and all tasks by name: what `evaluate --task=NAME` and `config.evaluate.tasks` know.

A new benchmark is one file in `evaluation/benchmarks` and one entry in BENCHMARKS.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from flamingo_jax.evaluation import lm_lookup, protocol, retrieval, world_tasks, zero_shot
from flamingo_jax.evaluation.benchmarks.coco import Coco
from flamingo_jax.evaluation.benchmarks.flickr30k import Flickr30k
from flamingo_jax.evaluation.benchmarks.hateful_memes import HatefulMemes
from flamingo_jax.evaluation.benchmarks.imagenet import ImageNet
from flamingo_jax.evaluation.benchmarks.ivqa import IVQA
from flamingo_jax.evaluation.benchmarks.kinetics700 import Kinetics700
from flamingo_jax.evaluation.benchmarks.msrvttqa import MSRVTTQA
from flamingo_jax.evaluation.benchmarks.msvdqa import MSVDQA
from flamingo_jax.evaluation.benchmarks.nextqa import NextQA
from flamingo_jax.evaluation.benchmarks.okvqa import OKVQA
from flamingo_jax.evaluation.benchmarks.rareact import RareAct
from flamingo_jax.evaluation.benchmarks.star import Star
from flamingo_jax.evaluation.benchmarks.textvqa import TextVQA
from flamingo_jax.evaluation.benchmarks.vatex import Vatex
from flamingo_jax.evaluation.benchmarks.visdial import VisDial
from flamingo_jax.evaluation.benchmarks.vizwiz import VizWiz, VizWizVal
from flamingo_jax.evaluation.benchmarks.vqav2 import VQAv2, VQAv2Val
from flamingo_jax.evaluation.benchmarks.youcook2 import YouCook2
from flamingo_jax.evaluation.task import ComparisonTask, Settings, Task, TaskFactory, UnknownTaskError

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(OKVQA, VQAv2, VQAv2Val, Coco, MSVDQA, Vatex, VizWiz, VizWizVal, Flickr30k, MSRVTTQA, IVQA, YouCook2, Star),
        *(VisDial, TextVQA, NextQA, HatefulMemes, RareAct, ImageNet, Kinetics700),
    )
}


def merged(*tables: Mapping[str, TaskFactory]) -> dict[str, TaskFactory]:
    """Merges tables of tasks.

    Raises:
        ValueError: two of them have the same name.
    """
    tasks: dict[str, TaskFactory] = {}
    for table in tables:
        for name, factory in table.items():
            if name in tasks:
                raise ValueError(
                    f"the task {name!r} is registered twice (by {tasks[name]!r} and {factory!r}): give one of them another name."
                )
            tasks[name] = factory
    return tasks


TASKS = merged(
    {name: functools.partial(protocol.make, benchmark=benchmark) for name, benchmark in BENCHMARKS.items()},
    zero_shot.TASKS,
    retrieval.TASKS,
    world_tasks.TASKS,
    lm_lookup.TASKS,
)


def create(name: str, data: Mapping[str, str], settings: Settings | None = None) -> Task | ComparisonTask:
    """Makes the task called `name`.

    Args:
        name: a key of TASKS.
        data: directories of the benchmarks by name, `config.data`.
        settings: of the few-shot protocol; by default the paper's.

    Raises:
        UnknownTaskError: no such task; the message suggests the closest names.
        TaskError: it needs a directory that `data` does not have, or does not know a setting.
    """
    if name not in TASKS:
        raise UnknownTaskError(name, sorted(TASKS))
    return TASKS[name](data, settings or Settings())
