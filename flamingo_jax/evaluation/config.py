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
from flamingo_jax.training.config import TrainConfig

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
# The directory of each benchmark, to be given on the command line; "world" is the demo's, "emoji"
# launch/emoji.sh's, "embed" and "embed_split" belong to --task=embed.
DIRECTORIES: Mapping[str, str | None] = dict.fromkeys(
    (
        "world",
        "emoji",
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


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """A search for the best run of fine-tuning on one benchmark (paper, B.2.2).

    The early choice is ours: after each of `rungs` the runs are compared, and the best share goes
    on. With `rungs = (1.0,)` every run is trained to its end, as the paper may have done.

    Attributes:
        task: name of the benchmark.
        run: what all runs have in common; `run.evaluate.data` has the benchmark's directory. The
            runs are compared by `run.evaluate`: its queries, and its numbers of them.
        grid: {axis: {label: fields}}: a run has one label of each axis. Fields are those of `run`,
            as on the command line, separated by spaces: "batch_size=8 augment.flip=0"; "" changes
            nothing.
        rungs: shares of a run's updates after which the runs are compared.
        keep: share of the runs that go on, rounded up.
    """

    task: str
    run: TrainConfig
    grid: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    rungs: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    keep: float = 0.5

    def __post_init__(self) -> None:
        ranges.check(self, ranges.SHARE, "rungs", "keep")
        if self.task not in registry.BENCHMARKS:
            raise FieldError(
                f"task is {self.task!r}; expected one of {', '.join(registry.BENCHMARKS)}."
            )
        if not self.rungs or self.rungs[-1] != 1 or sorted(set(self.rungs)) != list(self.rungs):
            raise FieldError(
                f"rungs is {self.rungs}; expected shares that grow to 1, such as (0.25, 1.0)."
            )
        if self.rungs[0] <= 0 or self.keep <= 0:
            raise FieldError(
                f"rungs is {self.rungs} and keep is {self.keep}; expected numbers above 0."
            )
