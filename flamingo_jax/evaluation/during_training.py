"""Measurements that a training run takes of its own model.

The program passes them to `training.run.train`, because training does not know the benchmarks.

    lm_lookup     the probe that ends the language_model stage (config.until)
    evaluation    the tasks of config.evaluate, every so many updates: few-shot tasks, or in the
                  contrastive stage zero-shot classification and retrieval

Benchmarks are asked as the paper asks them: validation queries, and beam search where answers are
decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from flamingo_jax.core.config import ConfigError
from flamingo_jax.data.schema import Batch
from flamingo_jax.evaluation import registry, task
from flamingo_jax.evaluation.comparison import ComparisonTask, compare_all
from flamingo_jax.evaluation.config import check_directories
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.lm_lookup import lookup_probe
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import check_metrics, episodes_of, evaluate_all, shots_of
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.dual_encoder import DualEncoder
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.models.api import Model
from flamingo_jax.sharding.mesh import replicated
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import Run

Measure = Callable[[Any], dict[str, float]]
_WAYS, _PAGES = (4, 6), 200


def lm_lookup(run: Run, tokenizer: Tokenizer) -> Measure:
    """Returns weights -> {"nll": ..., "accuracy": ...} of looking up words.

    Of pages with 4 words and pages with 6 words, the worse numbers are taken.

    Raises:
        ConfigError: in the contrastive stage, which has no language model.
    """
    model = _model(run, "until.probe = 'lm_lookup'")

    @functools.partial(jax.jit, out_shardings=replicated(run.mesh))  # every process needs all
    def losses(weights: Any, tokens: jax.Array, segment: jax.Array) -> jax.Array:
        return model.token_losses(weights, Batch.of_text(tokens, segment))

    def measure(params: Any) -> dict[str, float]:
        weights = run.config.precision.cast(params)
        found = [
            lookup_probe(
                lambda tokens, segment: losses(weights, tokens, segment),
                tokenizer,
                ways=ways,
                n=_PAGES,
                seed=0,
            )
            for ways in _WAYS
        ]
        return {
            "nll": max(numbers["nll"] for numbers in found),
            "accuracy": min(numbers["accuracy"] for numbers in found),
        }

    return measure


def evaluation(
    run: Run, tokenizer: Tokenizer, *, go_on: Callable[[], None] = lambda: None
) -> Measure:
    """Returns weights -> {"evaluate/TASK/SHOTS/METRIC": value} for the tasks of `config.evaluate`.

    Args:
        run: the run.
        tokenizer: its tokenizer.
        go_on: called after each task and number of shots; it may raise an error to give up.

    Raises:
        ConfigError: the stage's model cannot do a task, or its right answers are hidden.
        TaskError: a task is unknown, its directory is not given, or it has too few items.
        FileNotFoundError: a file of a task is missing.
        MissingResourceError: something that a metric needs is not installed.
    """
    settings = run.config.evaluate
    if not settings.tasks:
        raise ConfigError(
            f"config.evaluate.tasks is (), and config.evaluate.every is {settings.every}; expected "
            "at least one task, as in --config.evaluate.tasks=format, or every = 0."
        )
    check_directories(settings.data, "config.evaluate.data")
    data = {name: path for name, path in settings.data.items() if path}
    try:
        tasks = [
            registry.create(name, data, protocol_of(run.config, name)) for name in settings.tasks
        ]
    except task.MissingDirectoryError as error:
        raise task.MissingDirectoryError(
            error.task, error.benchmark, "config.evaluate.data"
        ) from error
    prompted, compared = task.split_by_kind(tasks)
    if run.config.stage == "contrastive":
        if prompted:
            raise ConfigError(
                f"config.evaluate.tasks has {prompted[0].name!r}, and the contrastive stage "
                "answers no prompts: take zero-shot and retrieval tasks, such as "
                "imagenet_zero_shot and world_retrieval."
            )
        for comparison in compared:
            comparison.check()
        return _comparisons(run, tokenizer, compared, go_on)
    if compared:
        raise ConfigError(
            f"config.evaluate.tasks has {compared[0].name!r}, which compares images with texts, "
            f"and the {run.config.stage} stage has no text encoder: leave it out."
        )
    check_metrics(prompted)
    for each in prompted:
        _check_queries(each)
    return _few_shot(run, tokenizer, prompted, go_on)


def protocol_of(config: TrainConfig, name: str) -> Protocol:
    """Returns the protocol of a task during this training run.

    Few-shot prompts are answered in float32, whatever the run computes in.

    Args:
        config: the run.
        name: of the task.
    """
    settings, is_benchmark = config.evaluate, name in registry.BENCHMARKS
    compute = config.precision.compute if config.stage == "contrastive" else "float32"
    decoding = settings.decoding or ("beam" if is_benchmark else "greedy")
    return Protocol(
        shots=settings.shots,
        n=settings.n,
        seed=config.seed,
        split=settings.split if is_benchmark else "test",
        num_support=settings.num_support,
        num_support_per_class=settings.num_support_per_class,
        text_examples=settings.text_examples,
        inference=InferenceConfig(decoding=decoding, compute=compute),
    )


def _check_queries(each: task.Task) -> None:
    """Draws the episodes of a task once, so that what is missing is an error at the start.

    Raises:
        ConfigError: the right answers of its queries are hidden.
        TaskError: it has too few items, or is defined at none of the numbers of shots.
        FileNotFoundError: a file of it is missing.
    """
    if isinstance(each, FewShotTask) and each.answers_are_hidden:
        raise ConfigError(
            f"config.evaluate.tasks has {each.name!r}, and the right answers of its split "
            f"{each.benchmark.split('test')} are hidden, so there would be no number: take "
            "--config.evaluate.split=validation, or leave it out."
        )
    for shots in shots_of(each):
        episodes_of(each, shots)


def _few_shot(
    run: Run, tokenizer: Tokenizer, tasks: Sequence[task.Task], go_on: Callable[[], None]
) -> Measure:
    model = _model(run, "evaluate.every")
    settings = dict.fromkeys(each.protocol.inference for each in tasks)

    def measure(params: Any) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for inference in settings:
            flamingo = Flamingo(
                model,
                params,
                tokenizer,
                **run.config.data.preprocessing,
                config=inference,
                mesh=run.mesh,
            )
            alike = [each for each in tasks if each.protocol.inference == inference]
            numbers |= _numbers(evaluate_all(flamingo, alike, log=lambda line: go_on())[0])
        return numbers

    return measure


def _comparisons(
    run: Run, tokenizer: Tokenizer, tasks: Sequence[ComparisonTask], go_on: Callable[[], None]
) -> Measure:
    config = run.config

    def measure(params: Any) -> dict[str, float]:
        model = DualEncoder(
            config.model,
            params,
            tokenizer,
            preprocessing=config.data.preprocessing,
            config=tasks[0].protocol.inference,
            mesh=run.mesh,
        )
        return _numbers(compare_all(model, tasks, log=lambda line: go_on())[0])

    return measure


def _numbers(rows: Iterable[Row]) -> dict[str, float]:
    return {f"evaluate/{row.task}/{row.shots}/{row.metric}": row.value for row in rows}


def _model(run: Run, field: str) -> Model:
    model = run.objective.model
    if not isinstance(model, Model):
        raise ConfigError(
            f"config.{field} needs a model of text, and the {run.config.stage} stage has none: "
            "unset it."
        )
    return model
