"""AdamW with one global clip, a warm-up and weight decay by group of weights.

    gradients --> clip --> Adam moments --> + decay * factor * weight --> * -learning_rate(step)

The paper (paper, B.1.2 "Training/optimisation details"): AdamW; the global norm clipped to 1;
weight decay 0.1, but 0 on the Perceiver Resampler; a learning rate that rises linearly from 0 to
1e-4 over 5,000 steps and then stays constant. The paper does not state the betas and epsilon:
optax's defaults are used.

A vision encoder that is trained can have its own clip and learning rate, and a language model that
the flamingo stage trains its own learning rate. In the contrastive stage
the paper clips the NFNet adaptively and BERT by a global norm of 10, with Adam, which is AdamW with
weight_decay 0 (paper, B.1.3). In fine-tuning the encoder is trained too (paper, B.2.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from flamingo_jax.core import ranges, trees
from flamingo_jax.core.params import Axes
from flamingo_jax.training.agc import clip_units

Group = Literal["vision", "lm", "rest"]


@dataclasses.dataclass(frozen=True)
class VisionOptimizerConfig:
    """Settings for the weights of a vision encoder that is trained.

    Attributes:
      learning_rate: peak of its learning rate; its schedule is the common one, scaled. None uses
          the common learning rate.
      agc: bound of each unit's gradient norm, relative to the norm of its weights (`training.agc`);
          0.01 in the paper's contrastive stage. The global clip is then over all other weights.
          None includes the encoder in the global clip.
    """

    learning_rate: float | None = None
    agc: float | None = None

    def __post_init__(self) -> None:
        ranges.check(self, ranges.Range(0, above=True), "learning_rate")
        ranges.check(self, ranges.POSITIVE, "agc")


@dataclasses.dataclass(frozen=True)
class LMOptimizerConfig:
    """Settings for the weights of a language model that the flamingo stage trains.

    Attributes:
      learning_rate: peak of its learning rate; its schedule is the common one, scaled. A tenth of
          the common rate in the paper's co-training of a pretrained one. None uses the common rate.
    """

    learning_rate: float | None = None

    def __post_init__(self) -> None:
        ranges.check(self, ranges.Range(0, above=True), "learning_rate")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule and its clip, for every stage (paper, B.1.2).

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      warmup_steps: updates in which the learning rate rises linearly from 0.
      schedule: what follows the warm-up: "constant" (the paper), or "cosine", "linear" or
          "exponential" (the same factor in each update) down to `final_fraction` of the peak.
      decay_steps: the update, counted from the start, at which the learning rate stops falling;
          None is the run's `steps`.
      final_fraction: the learning rate after `decay_steps`, as a fraction of the peak.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: multiplied by the learning rate and by the weight's `decay` in the objective's
          table.
      clip_norm: bound of the global gradient norm; None does not clip.
      vision: settings of a vision encoder that is trained.
      lm: settings of a language model that the flamingo stage trains.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 5_000
    schedule: Literal["constant", "cosine", "linear", "exponential"] = "constant"
    decay_steps: int | None = None
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    vision: VisionOptimizerConfig = VisionOptimizerConfig()
    lm: LMOptimizerConfig = LMOptimizerConfig()

    def __post_init__(self) -> None:
        ranges.check(self, ranges.Range(0, above=True), "learning_rate")
        ranges.check(self, ranges.whole(0), "warmup_steps")
        ranges.check(self, ranges.whole(1), "decay_steps")
        ranges.check(self, ranges.SHARE, "final_fraction")
        ranges.check(self, ranges.SHARE_BELOW_ONE, "b1", "b2")
        ranges.check(self, ranges.Range(1e-30, 1e6), "eps")  # a smaller one is 0 in float32
        ranges.check(self, ranges.NOT_NEGATIVE, "weight_decay")
        ranges.check(self, ranges.Range(0, above=True), "clip_norm")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError(
                f"decay_steps {self.decay_steps} must be beyond warmup_steps {self.warmup_steps}: "
                "both count from the start."
            )
        if self.schedule == "exponential" and self.final_fraction <= 0:
            raise ValueError(
                f"final_fraction is {self.final_fraction}, which no exponential fall reaches; "
                "expected a fraction above 0, such as 0.1."
            )

    def of_group(self, group: Group) -> OptimizerConfig:
        """Returns the config with the learning rate of a group of weights."""
        rate = None if group == "rest" else getattr(self, group).learning_rate
        return self if rate is None else dataclasses.replace(self, learning_rate=rate)


@dataclasses.dataclass(frozen=True)
class Traits:
    """What the optimizer knows of each trainable weight, by path.

    Attributes:
      decay: the factor of `weight_decay`.
      group: the group of settings that the weight has.
      axes: the logical axes.
    """

    decay: Mapping[str, float]
    group: Mapping[str, Group]
    axes: Mapping[str, Axes]


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns learning_rate(number of updates done).

    Args:
        config: the shape of the schedule.
        steps: updates of the run; the learning rate falls until then if `decay_steps` is None.
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    fall = max((config.decay_steps or steps) - config.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, fall, alpha=config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, final, fall),
        "exponential": lambda: optax.exponential_decay(
            peak, fall, config.final_fraction, end_value=final
        ),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, config.warmup_steps), after], [config.warmup_steps]
    )


def make_schedules(config: OptimizerConfig, steps: int) -> dict[str, optax.Schedule]:
    """Returns the schedules by their names in the log.

    These are "learning_rate" and, of a tower with a rate of its own, "learning_rate/vision" and
    "learning_rate/lm".
    """
    schedules = {"learning_rate": make_schedule(config, steps)}
    for group in ("vision", "lm"):
        if (own := config.of_group(group)) is not config:
            schedules[f"learning_rate/{group}"] = make_schedule(own, steps)
    return schedules


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, traits: Traits
) -> optax.GradientTransformation:
    """Returns AdamW.

    Args:
        config: its numbers.
        schedule: learning_rate(updates done) of the group "rest".
        traits: of the trainable weights.
    """
    relative = {
        group: config.of_group(group).learning_rate / config.learning_rate
        for group in ("vision", "lm", "rest")
    }

    def decay(path: str, update: jax.Array, weight: jax.Array) -> jax.Array:
        decayed = update + config.weight_decay * traits.decay[path] * weight
        rate = relative[traits.group[path]]
        return decayed if rate == 1 else rate * decayed

    return optax.chain(
        _clip(config, traits),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.stateless(lambda updates, weights: _by_path(decay, updates, weights)),
        optax.scale_by_learning_rate(schedule),
    )


def _clip(config: OptimizerConfig, traits: Traits) -> optax.GradientTransformation:
    """Clips the global norm; with AGC the vision encoder's units are clipped one by one instead."""
    bound, agc = config.clip_norm, config.vision.agc
    clip_globally = optax.identity() if bound is None else optax.clip_by_global_norm(bound)
    if agc is None:
        return clip_globally

    def clip(updates: trees.Params, weights: trees.Params) -> Any:
        flat, masters = trees.flatten(updates), trees.flatten(weights)
        rest = {path: gradient for path, gradient in flat.items() if traits.group[path] != "vision"}
        vision = {
            path: clip_units(gradient, masters[path], traits.axes[path], agc)
            for path, gradient in flat.items()
            if traits.group[path] == "vision"
        }
        clipped, _ = clip_globally.update(rest, clip_globally.init(rest))
        return trees.unflatten(vision | clipped)

    return optax.stateless(clip)


def _by_path(function: Any, *params: trees.Params) -> Any:
    """Applies function(path, *leaves) to weights of the same paths."""
    first, *others = (trees.flatten(tree) for tree in params)
    return trees.unflatten(
        {
            path: function(path, leaf, *(tree[path] for tree in others))
            for path, leaf in first.items()
        }
    )
