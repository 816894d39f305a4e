"""The config of an evaluation run: one setting for all benchmarks (paper, Appendix B.1.5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.registry import PAPER_BENCHMARKS
from flamingo_jax.sharding.mesh import MeshConfig

# The tasks of the paper: few-shot, Table 1 (images first); of contrastive models, Tables 7 and 9.
FEW_SHOT_TASKS = tuple(
    each.name
    for visual in ("image", "video")
    for each in PAPER_BENCHMARKS.values()
    if each.table == 1 and each.visual == visual
)
CONTRASTIVE_TASKS = tuple(
    f"{each.name}_{kind}"
    for kind in ("zero_shot", "retrieval")
    for each in PAPER_BENCHMARKS.values()
    if each.contrastive and each.contrastive.kind == kind
)
# The directory of each benchmark, to be given on the command line; "world" is the demo's, "embed"
# and "embed_split" belong to --task=embed.
DIRECTORIES: Mapping[str, str | None] = dict.fromkeys(
    ("world", *PAPER_BENCHMARKS, "embed", "embed_split")
)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Protocol):
    """What `evaluate` runs: a protocol, and the tasks, data and devices of this run.

    Attributes:
        tasks: names of the tasks; see `evaluation/registry.py`.
        features: directory where image features are stored for the next run: those that
            selection=rices compares, or a contrastive model's embeddings; None: OUTPUT/features.
        batch_size: prompts that are answered together, over all devices.
        num_samples: answers per task and number of shots that the report shows with their prompts.
        data: directory of each benchmark's data by name, such as {"world": "/data/world"}.
        towers: new directory of each frozen tower that moved after the checkpoint was written, by
            name ("lm", "vision").
        mesh: the devices; one by default. data=-1 spreads the prompts over all of them.
    """

    tasks: tuple[str, ...] = ("format", "bind2")
    features: str | None = None
    batch_size: int = 100
    num_samples: int = 2
    data: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    towers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        if not self.tasks or not self.shots:
            raise ConfigError(
                f"Nothing to evaluate: got tasks={self.tasks}, shots={self.shots}; expected at "
                "least one of each."
            )
        if min(self.shots) < 0:
            raise ConfigError(
                f"shots holds {min(self.shots)}; expected numbers of support examples >= 0."
            )
        if self.n < 0 or self.batch_size < 1:
            raise ConfigError(
                f"Got n={self.n}, batch_size={self.batch_size}; expected n >= 0 (0 = all), "
                "batch_size >= 1."
            )
        if twice := [name for name in self.tasks if self.tasks.count(name) > 1]:
            raise ConfigError(f"tasks has {twice[0]!r} twice; expected each task once.")
        self._check_mesh()
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_mesh(self) -> None:
        for name, why in (
            ("zero", "has no gradients"),
            ("sequence_parallel", "always splits the residual stream"),
        ):
            if not getattr(self.mesh, name):
                raise ConfigError(
                    f"mesh.{name}=False has no effect on an evaluation, which {why}: leave it out."
                )
        if (chips := self.mesh.model_chips) and self.mesh.model not in (-1, math.prod(chips)):
            raise ConfigError(
                f"mesh.model_chips={chips} is a block of {math.prod(chips)} chips, and mesh.model "
                f"is {self.mesh.model}: make them equal, or leave model_chips out."
            )
