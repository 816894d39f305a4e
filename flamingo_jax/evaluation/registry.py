"""All benchmarks and all tasks, by the names in `evaluate --task` and `config.evaluate.tasks`.

A new benchmark is one file in `evaluation/benchmarks` and one entry in BENCHMARKS.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from flamingo_jax.evaluation import (
    emoji_tasks,
    few_shot,
    lm_lookup,
    retrieval,
    world_tasks,
    zero_shot,
)
from flamingo_jax.evaluation.benchmarks.coco import COCO
from flamingo_jax.evaluation.benchmarks.easy_vqa import EASY_VQA
from flamingo_jax.evaluation.benchmarks.flickr30k import FLICKR30K
from flamingo_jax.evaluation.benchmarks.hateful_memes import HATEFUL_MEMES
from flamingo_jax.evaluation.benchmarks.imagenet import IMAGENET
from flamingo_jax.evaluation.benchmarks.ivqa import IVQA
from flamingo_jax.evaluation.benchmarks.kinetics700 import KINETICS700
from flamingo_jax.evaluation.benchmarks.later.gqa import GQA
from flamingo_jax.evaluation.benchmarks.later.mmbench import MMBENCH
from flamingo_jax.evaluation.benchmarks.later.nocaps import NOCAPS, NOCAPS_TEST
from flamingo_jax.evaluation.benchmarks.later.pope import POPE
from flamingo_jax.evaluation.benchmarks.later.scienceqa import SCIENCEQA, SCIENCEQA_IMG
from flamingo_jax.evaluation.benchmarks.later.seed_image import SEED_IMAGE
from flamingo_jax.evaluation.benchmarks.msrvttqa import MSRVTTQA
from flamingo_jax.evaluation.benchmarks.msvdqa import MSVDQA
from flamingo_jax.evaluation.benchmarks.nextqa import NEXTQA
from flamingo_jax.evaluation.benchmarks.okvqa import OKVQA
from flamingo_jax.evaluation.benchmarks.rareact import RAREACT
from flamingo_jax.evaluation.benchmarks.star import STAR
from flamingo_jax.evaluation.benchmarks.textvqa import TEXTVQA
from flamingo_jax.evaluation.benchmarks.vatex import VATEX
from flamingo_jax.evaluation.benchmarks.visdial import VISDIAL
from flamingo_jax.evaluation.benchmarks.vizwiz import VIZWIZ, VIZWIZ_VAL
from flamingo_jax.evaluation.benchmarks.vqav2 import VQAV2, VQAV2_VAL
from flamingo_jax.evaluation.benchmarks.youcook2 import YOUCOOK2
from flamingo_jax.evaluation.comparison import ComparisonTask
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.task import Task, TaskFactory, UnknownTaskError

# In the order of the paper's Tables 1 and 7; from EASY_VQA on they are not of the paper.
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(OKVQA, VQAV2, VQAV2_VAL, COCO, MSVDQA, VATEX, VIZWIZ, VIZWIZ_VAL, FLICKR30K, MSRVTTQA),
        *(IVQA, YOUCOOK2, STAR, VISDIAL, TEXTVQA, NEXTQA, HATEFUL_MEMES, RAREACT),
        *(IMAGENET, KINETICS700, EASY_VQA, NOCAPS, NOCAPS_TEST, GQA, POPE),
        *(SCIENCEQA, SCIENCEQA_IMG, MMBENCH, SEED_IMAGE),
    )
}
# The paper's benchmarks, in the order of its tables; without the variants on labelled splits.
PAPER_BENCHMARKS = {
    name: benchmark
    for name, benchmark in BENCHMARKS.items()
    if benchmark.is_of_paper and not benchmark.data
}


def merged(*tables: Mapping[str, TaskFactory]) -> dict[str, TaskFactory]:
    """Merges tables of tasks.

    Raises:
        ValueError: two tasks have the same name.
    """
    tasks: dict[str, TaskFactory] = {}
    for table in tables:
        for name, factory in table.items():
            if name in tasks:
                raise ValueError(
                    f"the task {name!r} is registered twice (by {tasks[name]!r} and {factory!r}): "
                    "give one of them another name."
                )
            tasks[name] = factory
    return tasks


def _few_shot() -> dict[str, TaskFactory]:
    return {
        name: functools.partial(few_shot.make, benchmark=benchmark)
        for name, benchmark in BENCHMARKS.items()
    }


def _contrastive() -> dict[str, TaskFactory]:
    tasks: dict[str, TaskFactory] = {}
    for name, benchmark in BENCHMARKS.items():
        kind = benchmark.contrastive.kind if benchmark.contrastive else None
        if kind == "zero_shot":
            tasks[f"{name}_zero_shot"] = functools.partial(zero_shot.make, benchmark=benchmark)
        elif kind == "retrieval":
            tasks[f"{name}_retrieval"] = functools.partial(retrieval.make, benchmark=benchmark)
    return tasks


TASKS = merged(
    _few_shot(),
    _contrastive(),
    zero_shot.TASKS,
    retrieval.TASKS,
    world_tasks.TASKS,
    emoji_tasks.TASKS,
    lm_lookup.TASKS,
)


def create(
    name: str, data: Mapping[str, str], protocol: Protocol | None = None
) -> Task | ComparisonTask:
    """Makes the task called `name`.

    Args:
        name: a key of TASKS.
        data: directories of the benchmarks by name, `config.data`.
        protocol: how queries and support examples are chosen; None: the default.

    Raises:
        UnknownTaskError: no task has this name; the message suggests the closest names.
        TaskError: `data` lacks a directory that the task needs, or the task cannot follow the
            protocol.
    """
    if name not in TASKS:
        raise UnknownTaskError(name, sorted(TASKS))
    return TASKS[name](data, protocol or Protocol())
