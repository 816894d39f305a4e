"""One schema for every stage: `--config=FILE` is turned into a TrainConfig, once.

    TrainConfig
      stage, name, seed, steps
      model      vision | vit | tiled_vit, text_encoder, contrastive, lm, resampler, xattn,
                 new_tokens
      data       tokenizer, image_size, datasets {name: batch size, lambda, ...}
      initial, unfrozen         fine-tuning (paper, B.2.2)
      mixing     accumulate | round_robin | merged
      loss, optimizer, precision, mesh, layers, towers, hooks, until, evaluate, resume

A stage uses some parts of the model; the others are None in its checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from flamingo_jax.core import ranges, seeds
from flamingo_jax.core.config import FieldError
from flamingo_jax.core.precision import Policy
from flamingo_jax.core.stack import Loops
from flamingo_jax.data.config import DataConfig
from flamingo_jax.models.config import PARTS, ModelConfig, Stage
from flamingo_jax.models.frozen import Unfrozen
from flamingo_jax.models.losses import LossConfig
from flamingo_jax.models.vision import num_patches, tiles_of
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training import left_out
from flamingo_jax.training.hooks import HooksConfig
from flamingo_jax.training.optimizer import (
    LMOptimizerConfig,
    OptimizerConfig,
    VisionOptimizerConfig,
)

# The kinds of datasets that a stage can learn from.
KINDS: Mapping[str, tuple[str, ...]] = {
    "language_model": ("text",),
    "contrastive": ("captions",),
    "flamingo": ("interleaved", "pairs", "conversations", "text"),
}
Mixing = Literal["accumulate", "round_robin", "merged"]  # training.datasets_per_step


@dataclasses.dataclass(frozen=True)
class TowersConfig:
    """Exports that the flamingo stage takes its towers from.

    A tower that is trained (`unfrozen`) starts with the weights of its export, or with random ones.

    Attributes:
      lm: export of a language_model run or of a Flamingo; None takes the tower of `initial`.
      vision: export of a contrastive run, of a vision encoder or of a Flamingo; None likewise.
      random: towers of `unfrozen` that are trained from nothing; no export is read for them.
    """

    lm: str | None = None
    vision: str | None = None
    random: tuple[Literal["vision", "lm"], ...] = ()

    def __post_init__(self) -> None:
        for name in self.random:
            if (path := getattr(self, name)) is not None:
                raise FieldError(
                    f"random has {name!r}, and {name} is {path!r}: a tower starts either with "
                    f"random weights or with those of an export. Leave one of the two out."
                )


@dataclasses.dataclass(frozen=True)
class UntilConfig:
    """Ends a stage when a probe's number is below a bound; `steps` is then the maximum.

    Attributes:
      probe: name of a probe that the program knows ("lm_lookup").
      metric: the number that is compared.
      below: the bound.
      every: updates between two probes; 0 runs all steps without a probe.
      required: True if it is an error to reach `steps` first; then nothing is exported.
    """

    probe: str = "lm_lookup"
    metric: str = "nll"
    below: float = 0.3
    every: int = 50
    required: bool = True

    def __post_init__(self) -> None:
        ranges.check(self, ranges.Range(), "below")
        ranges.check(self, ranges.whole(0), "every")


@dataclasses.dataclass(frozen=True)
class EvaluateEvery:
    """Evaluation during training, into the same log.

    Few-shot, or in the contrastive stage zero-shot classification and retrieval.

    Attributes:
      every: updates between two evaluations; 0: never.
      tasks: names of tasks.
      shots: numbers of support examples, of few-shot tasks.
      n: episodes, or images, of each; 0: all.
      split: queries of benchmarks: "validation" takes them from the training split, as the paper
          does while it develops (paper, B.1.4); "test" takes those of its tables. Tasks of the
          demo's world, and of contrastive models, have test pictures alone.
      decoding: how answers are decoded. None: "beam" for benchmarks (paper, A.2), "greedy" for
          the demo's world.
      num_support: as in `evaluate` (`evaluation.protocol.Protocol`), and likewise
          num_support_per_class and text_examples.
      data: directory of each benchmark by name, such as {"world": "/data/world"}; None is none.
    """

    every: int = 0
    tasks: tuple[str, ...] = ()
    shots: tuple[int, ...] = (0, 4)
    n: int = 64
    split: Literal["validation", "test"] = "validation"
    decoding: Literal["greedy", "beam"] | None = None
    num_support: int = 2048
    num_support_per_class: int = 32
    text_examples: int = 2
    data: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(0), "every", "shots", "n", "text_examples")
        ranges.check(self, ranges.whole(1), "num_support", "num_support_per_class")


@dataclasses.dataclass(frozen=True)
class ResumeConfig:
    """By what a run that goes on may differ from its checkpoint (`training.deviations`).

    Attributes:
      allow: fields that may have another value from now on, such as ("optimizer.learning_rate",).
          Keep it, and the new value, in the commands that follow.
      skip_batches: batches that are left out, as "DATASET:FIRST:END": "text:5:7" are the batches 5
          and 6 of dataset text. Only batches that the run has not used yet can be added.
    """

    allow: tuple[str, ...] = ()
    skip_batches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        left_out.spans(self.skip_batches)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run of one stage.

    Attributes:
      stage: decides the objective.
      steps: updates in all.
      model: the model's parts.
      data: datasets, with batch sizes and lambda_m (`weight`).
      name: shown in the log.
      seed: of initialisation, data order and everything else that is random.
      initial: export of a run of the same stage, or the WORKDIR that contains it. The trained
          weights start with its values. A run that is resumed from its own checkpoint does not read
          it again.
      unfrozen: towers that the flamingo stage trains: ("vision",) in fine-tuning (paper, B.2.2),
          ("lm",) in an ablation (paper, Table 3, row viii). ("lm.lora",) trains adapters of the
          language model, which `model.lm.lora` describes; an export has them merged.
      mixing: how datasets share an update. The paper accumulates the gradients of all datasets in
          each update (paper, 2.4).
      loss: what the loss of a batch of text is divided by.
      precision: the compute dtype, and whether frozen towers are in 8 bits; trained weights stay
          float32.
      mesh: devices of each mesh axis.
      layers: "scanned" compiles one layer of each stack; "unrolled" compiles all of them. On a CPU
          unrolled layers are faster, and take longer to compile. A run may go on with the other
          form; the last bits of its sums then differ.
      towers: exports of the towers, in the flamingo stage.
      hooks: reports, checkpoints and what is drawn.
      until: ends the stage early; None runs all steps.
      resume: by what this run may differ from its checkpoint.
    """

    stage: Stage
    steps: int
    model: ModelConfig
    data: DataConfig
    name: str = ""
    seed: int = 0
    initial: str | None = None
    unfrozen: tuple[Unfrozen, ...] = ()
    mixing: Mixing = "accumulate"
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Policy = Policy()
    mesh: MeshConfig = MeshConfig()
    layers: Loops = "scanned"
    towers: TowersConfig = TowersConfig()
    hooks: HooksConfig = HooksConfig()
    until: UntilConfig | None = None
    evaluate: EvaluateEvery = dataclasses.field(default_factory=EvaluateEvery)
    resume: ResumeConfig = ResumeConfig()

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1), "steps")
        ranges.check(self, seeds.RANGE, "seed")
        optional = {"vision", *(("resampler",) if self.model.tiled_vit is not None else ())}
        if missing := [
            part
            for part in PARTS[self.stage]
            if part not in optional and getattr(self.model, part) is None
        ]:
            raise ValueError(
                f"Stage {self.stage!r} needs model.{{{', '.join(PARTS[self.stage])}}}, and "
                f"model.{missing[0]} is None: describe it."
            )
        if "vision" in PARTS[self.stage]:
            self._check_images()
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
        if self.stage == "contrastive" and self.loss != LossConfig():
            raise FieldError(
                f"loss.normalise is {self.loss.normalise!r}, and the contrastive loss is a mean "
                "over rows; expected the default, 'tokens', in this stage."
            )
        self._check_chunks()
        self._check_towers()
        if self.optimizer.vision != VisionOptimizerConfig() and not self.trains_vision:
            raise ValueError(
                f"optimizer.vision is {self.optimizer.vision}, and this {self.stage} run trains no "
                "vision encoder: leave its fields None, or train it (unfrozen = ('vision',) in "
                "the flamingo stage)."
            )
        if self.optimizer.lm != LMOptimizerConfig() and "lm" not in self.unfrozen:
            raise FieldError(
                f"optimizer.lm is {self.optimizer.lm}, and this run does not train the language "
                "model of a Flamingo: leave its fields None, or train it (unfrozen = ('lm',))."
            )
        self._check_datasets()

    def _check_towers(self) -> None:
        if self.unfrozen and self.stage != "flamingo":
            raise ValueError(
                f"unfrozen is {self.unfrozen}, and the {self.stage} stage freezes nothing; "
                "expected () outside of the flamingo stage."
            )
        given = {name: value for name, value in vars(self.towers).items() if value}
        if given and self.stage != "flamingo":
            (name, value), *_ = given.items()
            raise FieldError(
                f"towers.{name} is {value!r}, and the {self.stage} stage reads no tower: leave it "
                "out. To go on from the weights of an export of this stage, give it as initial."
            )
        if frozen := [name for name in self.towers.random if name not in self.unfrozen]:
            raise FieldError(
                f"towers.random has {frozen[0]!r}, and unfrozen is {self.unfrozen}: random weights "
                f"that are frozen learn nothing. Add {frozen[0]!r} to unfrozen, or leave it out."
            )
        self._check_adapters()
        if self.precision.frozen == "int8" and self.stage != "flamingo":
            raise ValueError(
                f"precision.frozen is 'int8', and the {self.stage} stage freezes nothing; expected "
                "'compute' outside of the flamingo stage."
            )
        if self.precision.frozen == "int8" and {"vision", "lm"} <= set(self.unfrozen):
            raise FieldError(
                f"precision.frozen is 'int8', and unfrozen is {self.unfrozen}: no tower is frozen; "
                "expected 'compute'. With one frozen tower, that one is in 8 bits."
            )

    def _check_chunks(self) -> None:
        chunks = {name: dataset.chunks for name, dataset in self.data.datasets.items()}
        if set(chunks.values()) <= {1}:
            return
        got = f"data.datasets.NAME.chunks is {chunks}"
        if self.mixing == "merged" and len(set(chunks.values())) > 1:
            raise FieldError(
                f"{got}, and a merged batch is cut into one number of chunks: expected the same "
                "for each dataset; or mixing = 'accumulate'."
            )
        if self.mixing == "merged" and self.trains_vision:
            raise FieldError(
                f"{got}, and in a merged batch a vision encoder that is trained would drop other "
                "blocks for another number of chunks: expected 1; or mixing = 'accumulate'."
            )
        contrastive = self.model.contrastive
        if self.stage == "contrastive" and contrastive is not None and contrastive.chunk:
            raise FieldError(
                f"{got}, and model.contrastive.chunk = {contrastive.chunk} is the former name of "
                "the same: expected model.contrastive.chunk = 0."
            )

    def _check_images(self) -> None:
        encoder = self.model.encoder()
        try:
            num_patches(encoder, self.data.image_size)
        except ValueError as error:
            raise FieldError(f"data.image_size is {self.data.image_size}: {error}") from error
        tiles = tiles_of(encoder)
        if tiles and self.stage == "contrastive":
            raise FieldError(
                "model.tiled_vit is given, and the contrastive stage learns from images that are "
                "one square: expected model.vision or model.vit."
            )
        for name, dataset in self.data.datasets.items():
            if tiles and dataset.num_visuals and dataset.num_frames != tiles:
                raise FieldError(
                    f"data.datasets.{name}.num_frames is {dataset.num_frames}; expected {tiles}, "
                    "the most tiles of an image (model.tiled_vit.max_tiles)."
                )

    def _check_datasets(self) -> None:
        if not self.data.datasets:
            raise FieldError("data.datasets is empty; a run needs at least one dataset.")
        for name, dataset in self.data.datasets.items():
            if dataset.kind not in KINDS[self.stage]:
                raise FieldError(
                    f"data.datasets.{name}.kind is {dataset.kind!r}; the {self.stage} stage takes "
                    f"{' or '.join(map(repr, KINDS[self.stage]))}."
                )
            if dataset.kind == "text" and not self._text_teaches_layers():
                raise FieldError(
                    f"data.datasets.{name}.kind is 'text', the language model is frozen, and "
                    "xattn.dense is False or xattn.skip_unseen is True: text without images would "
                    "train no layer. Leave the dataset out, or train the language model: unfrozen "
                    "= ('lm',)."
                )
            xattn = self.model.xattn
            if dataset.kind == "interleaved" and dataset.p_next and xattn and xattn.attend == "run":
                raise FieldError(
                    f"data.datasets.{name}.p_next is {dataset.p_next}, and xattn.attend is 'run': "
                    "text attends the images directly before it, and never the next one. Expected "
                    "p_next = 0."
                )
            most = self.model.max_length(self.stage)
            if most is not None and dataset.length > most:
                raise FieldError(
                    f"data.datasets.{name}.length is {dataset.length}; expected at most {most}, "
                    f"the positions that the model of the {self.stage} stage has."
                )
        if not any(dataset.weight for dataset in self.data.datasets.values()):
            names = ", ".join(f"data.datasets.{name}.weight" for name in self.data.datasets)
            raise FieldError(
                f"{names} is 0, so nothing is learnt; expected a weight above 0 for at least one."
            )

    def _text_teaches_layers(self) -> bool:
        """Returns True if rows without images train more than the new tokens.

        These are the language model, grafted blocks, and the dense parts of the cross-attention
        layers.
        """
        if self.stage != "flamingo" or any(name.startswith("lm") for name in self.unfrozen):
            return True
        xattn = self.model.xattn
        if xattn is None or xattn.grafted_layers > 0:
            return True
        return xattn.dense and not xattn.skip_unseen

    def _check_adapters(self) -> None:
        lm, trained = self.model.lm, "lm.lora" in self.unfrozen
        is_given = lm is not None and lm.lora is not None and "lm" in PARTS[self.stage]
        if trained and "lm" in self.unfrozen:
            raise FieldError(
                "unfrozen has 'lm' and 'lm.lora': adapters are for weights that are frozen. Leave "
                "one of the two out."
            )
        if trained and not is_given:
            raise FieldError(
                "unfrozen has 'lm.lora', and model.lm.lora is None: describe the adapters, as with "
                "--config.model.lm.lora.rank=8."
            )
        if is_given and self.stage != "flamingo":
            raise FieldError(
                f"model.lm.lora is given, and the {self.stage} stage trains the whole language "
                "model: expected None."
            )
        if is_given and not trained:
            raise FieldError(
                f"model.lm.lora is given, and unfrozen is {self.unfrozen}: nothing would train the "
                "adapters. Add 'lm.lora' to unfrozen, or set model.lm.lora to None."
            )

    @property
    def trains_vision(self) -> bool:
        """True if the vision encoder is among the trained weights."""
        return self.stage == "contrastive" or "vision" in self.unfrozen

    def resolved(self, vocab_size: int) -> TrainConfig:
        """Returns the config as it is run and stored with its checkpoints.

        All fields that follow from others are filled; parts that the stage does not use are None.

        Args:
            vocab_size: number of the tokenizer's pieces.
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
