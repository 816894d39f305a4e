"""What a training run may measure of itself: handed to `training.stage.train` by the program, since training knows no benchmark.

lm_lookup   the probe that ends the language_model stage (config.until)
few_shot    the tasks of config.evaluate, every so many updates
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from flamingo_jax.core.config import ConfigError
from flamingo_jax.data.schema import Batch
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.lm_lookup import lookup_probe
from flamingo_jax.evaluation.runner import evaluate_all
from flamingo_jax.inference.api import Flamingo
from flamingo_jax.models.decoder import Decoder
from flamingo_jax.sharding.mesh import replicated
from flamingo_jax.training.stage import Stage

Measure = Callable[[Any], dict[str, float]]
_WAYS, _PAGES = (4, 6), 200


def lm_lookup(stage: Stage) -> Measure:
    """Returns weights -> {"nll": ..., "accuracy": ...}: the worse of look-up among 4 and among 6 words.

    Raises:
        ConfigError: in the contrastive stage, which has no language model.
    """
    model = _model(stage, "until.probe = 'lm_lookup'")

    @functools.partial(jax.jit, out_shardings=replicated(stage.mesh))  # whole in every process
    def losses(weights: Any, tokens: jax.Array, segment: jax.Array) -> jax.Array:
        return model.token_losses(weights, Batch(tokens, segment, *[None] * 5))

    def measure(params: Any) -> dict[str, float]:
        weights = stage.config.precision.cast(params)
        found = [
            lookup_probe(
                lambda tokens, segment: losses(weights, tokens, segment), stage.tokenizer, ways=ways, n=_PAGES, seed=0
            )
            for ways in _WAYS
        ]
        return {
            "nll": max(numbers["nll"] for numbers in found),
            "accuracy": min(numbers["accuracy"] for numbers in found),
        }

    return measure


def few_shot(stage: Stage) -> Measure:
    """Returns weights -> {"evaluate/TASK/SHOTS/METRIC": value} for the tasks of `config.evaluate`.

    Raises:
        ConfigError: in the contrastive stage, which answers no prompts.
    """
    model, settings = _model(stage, "evaluate.every"), stage.config.evaluate
    tasks = [task.create(name, settings.data) for name in settings.tasks]

    def measure(params: Any) -> dict[str, float]:
        flamingo = Flamingo(model, params, stage.tokenizer, image_size=stage.config.data.image_size, mesh=stage.mesh)
        results = evaluate_all(flamingo, tasks, settings.shots, n=settings.n, seed=stage.config.seed)
        return {f"evaluate/{row.task}/{row.shots}/{row.metric}": row.value for result in results for row in result.rows}

    return measure


def _model(stage: Stage, field: str) -> Decoder:
    if stage.model is None:
        raise ConfigError(
            f"config.{field} needs a model of text, and the {stage.config.stage} stage has none: unset it."
        )
    return stage.model
