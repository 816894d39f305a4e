"""Zero-shot classification and retrieval tasks from a contrastive model to rows of results.json (what `answering` and `runner` are to prompts)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from flamingo_jax.core.paths import PathLike, write_atomically
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.task import Comparison, ComparisonTask
from flamingo_jax.inference.dual_encoder import DualEncoder

COSINE = "cosine"  # `Row.decoding` of these tasks


def compare_all(
    model: DualEncoder,
    tasks: Sequence[ComparisonTask],
    *,
    n: int,
    seed: int,
    log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], list[Comparison]]:
    """Runs tasks, in their order.

    Args:
        model: the encoders.
        tasks: what is compared.
        n: images or videos of each; 0: all.
        seed: chooses them.
        log: gets a line per task.

    Returns:
        A row per task and metric, and what each task found.

    Raises:
        TaskError: a task has not as many images.
        PromptError: an image or a video cannot be read.
    """
    rows, found = [], []
    for task in tasks:
        result = task.compare(model, n, seed)
        found.append(result)
        rows += [
            Row(
                task=task.name,
                split="test",
                shots=0,
                metric=metric,
                value=value,
                n=result.n,
                seed=seed,
                selection="random",
                ensemble=result.templates,
                decoding=COSINE,
                checkpoint=model.checkpoint,
                step=model.step,
            )
            for metric, value in result.values.items()
        ]
        log(
            f"{task.name:<22} "
            f"{'  '.join(f'{metric} {value:.3f}' for metric, value in result.values.items())}"
        )
    return rows, found


def write_predictions(
    path: PathLike, tasks: Sequence[ComparisonTask], found: Sequence[Comparison]
) -> None:
    """Writes predictions.jsonl: one line per image or video."""
    lines = [
        json.dumps({"task": task.name, "shots": 0, **prediction}, ensure_ascii=False)
        for task, result in zip(tasks, found, strict=True)
        for prediction in result.predictions
    ]
    write_atomically(path, "\n".join(lines) + "\n")
