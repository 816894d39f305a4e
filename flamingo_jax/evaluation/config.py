"""The config of an evaluation run: one setting for all benchmarks (paper, Appendix B.1.5)."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping

from flamingo_jax.core import ranges
from flamingo_jax.core.config import ConfigError, FieldError
from flamingo_jax.evaluation import registry
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
    (
        "world",
        *(name for name, each in registry.BENCHMARKS.items() if not each.data),
        *("embed", "embed_split"),
    )
)


def check_directories(data: Mapping[str, str | None], where: str) -> None:
    """Checks the names of benchmarks' directories: one that no task knows would have no effect.

    Raises:
        FieldError: a name is unknown; the message names the nearest.
    """
    known = [*DIRECTORIES, *(name for name in registry.TASKS if name not in DIRECTORIES)]
    for name, path in data.items():
        if path and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise FieldError(
                f"{where}.{name} is {path!r}, and no benchmark has this name"
                + (f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}.")
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
        ranges.check(self, ranges.whole(1), "batch_size")
        ranges.check(self, ranges.whole(0), "num_samples")
        if twice := [name for name in self.tasks if self.tasks.count(name) > 1]:
            raise ConfigError(f"tasks has {twice[0]!r} twice; expected each task once.")
        check_directories(self.data, "data")
        self._check_mesh()
        super().__post_init__()

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
