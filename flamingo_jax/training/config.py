"""One schema for every stage: what `--config=FILE` is turned into, once.

TrainConfig
stage, name, seed, steps
model      vision | vit, text_encoder, contrastive, lm, resampler, xattn, new_tokens     the parts that the stage uses
data       tokenizer, image_size, datasets {name: batch size, lambda, ...}
initial, unfrozen                                                                        fine-tuning (paper, B.2.2)
mixing     accumulate | round_robin | merged
optimizer, precision, mesh, towers, hooks, until, evaluate
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import DataConfig
from flamingo_jax.models.config import PARTS, ModelConfig, Stage
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.optimizer import OptimizerConfig, VisionOptimizerConfig

Mixing = Literal["accumulate", "round_robin", "merged"]  # training.datasets_per_step


@dataclasses.dataclass(frozen=True)
class TowersConfig:
    """Exports that the flamingo stage freezes: of a language_model run, and of a contrastive run.

    Or towers of another Flamingo.

    None is that of `initial`, where that is given. A tower that is trained (`unfrozen`) begins as
    it is in its export.
    """

    lm: str | None = None
    vision: str | None = None


@dataclasses.dataclass(frozen=True)
class HooksConfig:
    """What happens between updates; counts are in updates, 0 is never.

    Attributes:
      log_every: between two reports; numbers leave the devices only then.
      save_every: between two checkpoints (the last state is always saved); a multiple of log_every,
          so that a resumed run reports the same means.
      keep: newest checkpoints kept.
      tensorboard: whether events are written beside metrics.jsonl.
      progress: whether a progress bar is drawn.
    """

    log_every: int = 50
    save_every: int = 1_000
    keep: int = 3
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.save_every < 0 or self.save_every % self.log_every:
            raise ValueError(
                f"save_every {self.save_every} must be a multiple of log_every {self.log_every} "
                "(>= 1), so that a resumed run reports the same means: change one of them."
            )


@dataclasses.dataclass(frozen=True)
class UntilConfig:
    """Ends a stage when a probe's number is below a bound; `steps` is then the maximum.

    Attributes:
      probe: name of a probe that the program knows ("lm_lookup").
      metric: which of its numbers.
      below: the bound.
      every: updates between two probes; 0: none, and all steps are run.
      required: whether running out of steps is an error, and nothing is exported.
    """

    probe: str = "lm_lookup"
    metric: str = "nll"
    below: float = 0.3
    every: int = 50
    required: bool = True


@dataclasses.dataclass(frozen=True)
class EvaluateEvery:
    """Evaluation during training, into the same log.

    Few-shot, or in the contrastive stage zero-shot classification and retrieval.

    Attributes:
      every: updates between two evaluations; 0: never.
      tasks: names of tasks.
      shots: numbers of support examples, of few-shot tasks.
      n: episodes, or images, of each.
      data: directory of each benchmark by name, such as {"world": "/data/world"}; None is none.
    """

    every: int = 0
    tasks: tuple[str, ...] = ()
    shots: tuple[int, ...] = (0, 4)
    n: int = 64
    data: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
      stage: which objective.
      steps: updates in all.
      model: the model's parts.
      data: datasets, with batch sizes and lambda_m (`weight`).
      name: shown in the log.
      seed: of initialisation, data order and everything random.
      initial: export of a run of the same stage, or the WORKDIR around it: the trained weights
          begin as they are there. A run that goes on
          from a checkpoint of its own does not read them again.
      unfrozen: towers that the flamingo stage trains: ("vision",) in fine-tuning (paper, B.2.2).
      mixing: how datasets share an update; the paper accumulates the gradients of all in each
          (2.4).
      precision: compute dtype; weights that are trained stay float32.
      mesh: devices per mesh axis.
    """

    stage: Stage
    steps: int
    model: ModelConfig
    data: DataConfig
    name: str = ""
    seed: int = 0
    initial: str | None = None
    unfrozen: tuple[Literal["vision"], ...] = ()
    mixing: Mixing = "accumulate"
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Policy = Policy()
    mesh: MeshConfig = MeshConfig()
    towers: TowersConfig = TowersConfig()
    hooks: HooksConfig = HooksConfig()
    until: UntilConfig | None = None
    evaluate: EvaluateEvery = dataclasses.field(default_factory=EvaluateEvery)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1 update.")
        if "vision" in PARTS[self.stage]:
            self.model.encoder()
        if missing := [
            part
            for part in PARTS[self.stage]
            if part != "vision" and getattr(self.model, part) is None
        ]:
            raise ValueError(
                f"Stage {self.stage!r} needs model.{{{', '.join(PARTS[self.stage])}}}, and "
                f"model.{missing[0]} is None: describe it."
            )
        if not self.data.datasets:
            raise ValueError("data.datasets is empty; a run needs at least one dataset.")
        weights = {name: dataset.weight for name, dataset in self.data.datasets.items()}
        if (
            self.stage == "contrastive"
            and self.mixing == "merged"
            and set(weights.values()) != {1.0}
        ):
            raise ValueError(
                f"Datasets have the weights {weights}, and in a merged batch of the contrastive "
                "stage all rows count alike: expected 1.0 for each; or mixing = 'accumulate'."
            )
        if self.unfrozen and self.stage != "flamingo":
            raise ValueError(
                f"unfrozen is {self.unfrozen}, and the {self.stage} stage freezes nothing; "
                "expected () outside of the flamingo stage."
            )
        if self.optimizer.vision != VisionOptimizerConfig() and not self.trains_vision:
            raise ValueError(
                f"optimizer.vision is {self.optimizer.vision}, and this {self.stage} run trains no "
                "vision encoder: leave its fields None, or train it (unfrozen = ('vision',) in "
                "the flamingo stage)."
            )

    @property
    def trains_vision(self) -> bool:
        """Whether the vision encoder is among the trained weights."""
        return self.stage == "contrastive" or "vision" in self.unfrozen

    def resolved(self, vocab_size: int) -> TrainConfig:
        """Returns the config as it is run, and kept beside its checkpoints.

        Nothing left open, nothing that the stage does not use.

        Args:
            vocab_size: the tokenizer's pieces.
        """
        optimizer = self.optimizer
        if optimizer.schedule != "constant" and optimizer.decay_steps is None:
            optimizer = dataclasses.replace(
                optimizer, decay_steps=max(self.steps, optimizer.warmup_steps + 1)
            )
        return dataclasses.replace(
            self,
            model=self.model.of_stage(self.stage).with_vocabulary(vocab_size),
            optimizer=optimizer,
            until=self.until if self.until and self.until.every else None,
        )
