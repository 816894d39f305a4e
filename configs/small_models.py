"""What the configs of the small models share: tiny.py, emoji.py and easy_vqa.py.

This is a part of other configs, not an experiment.
"""

from typing import Literal

from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import NO_AUGMENTATION, AugmentConfig, DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models.config import ModelConfig, Stage
from flamingo_jax.training.config import (
    EvaluateEvery,
    HooksConfig,
    TowersConfig,
    TrainConfig,
    UntilConfig,
)
from flamingo_jax.training.optimizer import OptimizerConfig

NO_TOWERS = TowersConfig()
# {field: its value} for a GPU.
ON_A_GPU = {
    "precision.compute": "bfloat16",
    "layers": "scanned",
    "hooks.log_every": 50,
    "hooks.save_every": 500,
}


def size_and_stage(
    argument: str, *, config: str, sizes: tuple[str, ...], stages: tuple[str, ...]
) -> tuple[str, str]:
    """Reads the argument of a config: STAGE, SIZE or SIZE,STAGE.

    Returns:
        The size, the first one by default; and the stage, the last one by default.

    Raises:
        ValueError: there is no such size or stage.
    """
    size, stage = sizes[0], stages[-1]
    match argument.split(","):
        case [one] if one in stages:
            stage = one
        case [one] if one in sizes:
            size = one
        case [one, other] if one in sizes and other in stages:
            size, stage = one, other
        case _:
            raise ValueError(
                f"configs/{config}.py has no stage {argument!r}; expected STAGE, SIZE or "
                f"SIZE,STAGE with the stages {', '.join(stages)} and the sizes "
                f"{', '.join(sizes)}, as in --config=configs/{config}.py:{stages[-1]}"
            )
    return size, stage


def train_config(
    name: str,
    stage: Stage,
    *,
    model: ModelConfig,
    steps: int,
    datasets: dict[str, DatasetConfig],
    optimizer: OptimizerConfig,
    tokenizer: str,
    image_size: int = 32,
    augment: AugmentConfig = NO_AUGMENTATION,
    towers: TowersConfig = NO_TOWERS,
    initial: str | None = None,
    unfrozen: tuple[Literal["vision"], ...] = (),
    until: UntilConfig | None = None,
    benchmarks: dict[str, str] | None = None,
) -> TrainConfig:
    """Returns the config of a stage: the arguments, and all that the small models share.

    Args:
        name: shown in the log.
        stage: decides the objective.
        model, steps, datasets, optimizer, towers, initial, unfrozen, until: as in TrainConfig.
        tokenizer, image_size, augment: as in DataConfig. Images are not changed by default: the
            texts of the tiny world and of easy-VQA are about colours, and about left and right.
        benchmarks: {name: directory} for evaluation during training, which is off by default. To
            use it: --config.evaluate.every=100 --config.evaluate.tasks="('format',)", in the
            contrastive stage ('world_retrieval',).
    """
    return TrainConfig(
        name=name,
        stage=stage,
        seed=1,
        steps=steps,
        model=model,
        initial=initial,
        unfrozen=unfrozen,
        data=DataConfig(tokenizer, image_size=image_size, datasets=datasets, augment=augment),
        optimizer=optimizer,
        precision=Policy("float32"),  # CPUs compute bfloat16 in float32
        layers="unrolled",  # on a CPU a loop over layers costs more than it saves
        towers=towers,
        hooks=HooksConfig(log_every=10, save_every=100, keep=1),
        until=until,
        evaluate=EvaluateEvery(data={**DIRECTORIES, **(benchmarks or {})}),
    )


def adam(
    *, learning_rate: float, warmup_steps: int, decay_steps: int | None = None
) -> OptimizerConfig:
    """Returns AdamW with a cosine that ends at 5 % of the peak."""
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule="cosine",
        decay_steps=decay_steps,
        final_fraction=0.05,
        b2=0.98,
        weight_decay=0.01,
        clip_norm=1.0,
    )
