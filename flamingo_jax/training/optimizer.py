"""AdamW with one global clip, a warm-up and a decay table (paper, B.1.2 "Training/optimisation details").

The paper: AdamW, global norm clipped to 1, weight decay 0.1 but 0 on the Perceiver Resampler, learning rate raised linearly
from 0 to 1e-4 over 5,000 steps and then constant. It leaves the betas and epsilon open: optax's defaults stand here.

    gradients --> clip --> Adam moments --> + decay * factor * weight --> * -learning_rate(step) --> updates
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import optax

from flamingo_jax.core import trees


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of every stage.

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      warmup_steps: updates of linear rise from 0.
      schedule: what follows the warm-up: "constant" (the paper), or "cosine" or "linear" down to `final_fraction` of the peak.
      decay_steps: the update, counted from the start, at which the fall ends; None: the run's `steps`.
      final_fraction: the learning rate after `decay_steps`, as a fraction of the peak.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: times the learning rate and the weight's factor in the objective's decay table.
      clip_norm: bound of the global gradient norm; None: no clip.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 5_000
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    decay_steps: int | None = None
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"learning_rate {self.learning_rate} must be positive, warmup_steps {self.warmup_steps} and weight_decay {self.weight_decay} not negative."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; expected a positive bound, or None for no clip.")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps {self.decay_steps} must be beyond warmup_steps {self.warmup_steps}: both count from the start."
            )


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns learning_rate(number of updates done).

    Args:
        config: the shape of the schedule.
        steps: the length of the run, where the fall ends unless `decay_steps` says otherwise.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    fall = max((config.decay_steps or steps) - config.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, fall, alpha=config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, final, fall),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), after], [config.warmup_steps])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, factors: trees.Params
) -> optax.GradientTransformation:
    """Returns AdamW.

    Args:
        config: its numbers.
        schedule: learning_rate(number of updates done).
        factors: tree of floats, one for each trainable weight: its share of `weight_decay` (the objective's decay table).
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.stateless(
            lambda updates, weights: jax.tree.map(
                lambda u, w, factor: u + config.weight_decay * factor * w, updates, weights, factors
            )
        ),
        optax.scale_by_learning_rate(schedule),
    )
