"""Zero-shot classification and retrieval: tasks that compare a contrastive model's embeddings.

ComparisonTask.compare(model) -> Comparison --compare_all--> rows of results.json
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import numpy as np

from flamingo_jax.core.notation import Float
from flamingo_jax.core.paths import PathLike, write_atomically
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.inference.dual_encoder import DualEncoder
from flamingo_jax.inference.prompt import Visual

COSINE = "cosine"  # `Row.decoding` of these tasks


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of a comparison of embeddings.

    Attributes:
        values: value of each metric, 0..1.
        n: number of images or videos that were compared.
        templates: sentences per class; 1 in retrieval.
        predictions: a JSON object for each query, for inspection.
    """

    values: Mapping[str, float]
    n: int
    templates: int = 1
    predictions: Sequence[Mapping[str, Any]] = ()


@runtime_checkable
class Encoders(Interface):
    """What a comparison needs of a model; `inference.dual_encoder.DualEncoder` implements it."""

    def images(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n J"]:
        """Returns the embeddings of images and videos, of length 1."""
        ...

    def texts(self, strings: Sequence[str]) -> Float[np.ndarray, "n J"]:
        """Returns the embeddings of texts, of length 1."""
        ...


@runtime_checkable
class ComparisonTask(Interface):
    """A task for a contrastive model: embeddings of images are compared with those of texts."""

    @property
    def name(self) -> str:
        """The name in results.json and on the command line."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The keys of `Comparison.values`; the one that papers report is the first."""
        ...

    @property
    def split(self) -> str:
        """The name of the split that the images are from, such as "val"."""
        ...

    @property
    def protocol(self) -> Protocol:
        """How many images are compared, and the seed that chooses them."""
        ...

    def check(self) -> None:
        """Draws the images that `compare` takes, before a model is there.

        Raises:
            TaskError: there are fewer images than `protocol.n`.
            FileNotFoundError: a file of the benchmark is missing.
        """
        ...

    def compare(self, model: Encoders) -> Comparison:
        """Compares `protocol.n` images (0: all).

        Raises:
            TaskError: there are fewer images.
        """
        ...


def compare_all(
    model: DualEncoder,
    tasks: Sequence[ComparisonTask],
    *,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], list[Comparison]]:
    """Runs the tasks, in their order.

    Args:
        model: the encoders.
        tasks: the tasks.
        log: called with a line per task.

    Returns:
        A row per task and metric, and the comparison of each task.

    Raises:
        TaskError: a task has fewer images than its protocol asks for.
        PromptError: an image or a video cannot be read.
    """
    rows, comparisons = [], []
    for task in tasks:
        comparison = task.compare(model)
        comparisons.append(comparison)
        rows += [
            Row(
                task=task.name,
                split=task.split,
                shots=0,
                metric=metric,
                value=value,
                n=comparison.n,
                seed=task.protocol.seed,
                selection="random",
                ensemble=comparison.templates,
                decoding=COSINE,
                checkpoint=model.checkpoint,
                step=model.step,
            )
            for metric, value in comparison.values.items()
        ]
        values = (f"{metric} {value:.3f}" for metric, value in comparison.values.items())
        log(f"{task.name:<22} {'  '.join(values)}")
    return rows, comparisons


def write_predictions(
    path: PathLike, tasks: Sequence[ComparisonTask], comparisons: Sequence[Comparison]
) -> None:
    """Writes predictions.jsonl: one line per image or video.

    Raises:
        PathError: the file cannot be written.
    """
    lines = [
        json.dumps(
            {"task": task.name, "shots": 0, **prediction}, ensure_ascii=False, allow_nan=False
        )
        for task, comparison in zip(tasks, comparisons, strict=True)
        for prediction in comparison.predictions
    ]
    write_atomically(path, "\n".join(lines) + "\n")
