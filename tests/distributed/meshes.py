"""One training step of a small Flamingo on any mesh.

`python -m tests.distributed.meshes OUT.npz 1 1 16` writes its results.

The model is built as the 80B (relative positions, fused projections, remat "projections",
cross-attention before every second block). What the model axis splits is a multiple of 16, and
every weight of a block has a multiple of 25 numbers, which no activation has. So the shapes in a
compiled step show if it gathers a weight.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import jax
import numpy as np
import optax

from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.precision import Policy
from flamingo_jax.data import schema
from flamingo_jax.data.to_device import to_device
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh, num_batch_shards
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.optimizer import make_optimizer
from flamingo_jax.training.state import StateLayout
from tests.training import small

WIDTH, HEADS, HEAD_SIZE = 40, 16, 5
WEIGHT_FACTOR = 25  # WIDTH * HEAD_SIZE and WIDTH * WIDTH are multiples of it
WEIGHTS = {"pages": 1.0, "pairs": 0.5}
# In AdamW an error e of a gradient moves a weight by at most RATE / EPSILON * e.
RATE, EPSILON = 1e-2, 1e-3
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
MOST_SHARDS = 8  # of the batch, on the meshes of the tests


def run_config(mesh: MeshConfig, **changes: Any) -> TrainConfig:
    """Returns the resolved config of the run; `changes` are other fields of it."""
    described = small.get_config("flamingo")
    described.model.lm.update(
        num_layers=4, width=WIDTH, num_heads=HEADS, head_dim=HEAD_SIZE, vocab_multiple=5 * HEADS
    )
    described.model.lm.update(
        norm="rms", position="relative", mlp_bias=True, qkv_conv_width=0, remat="projections"
    )
    described.model.xattn.update(every=2, head_dim=HEAD_SIZE)
    described.layers = "scanned"
    described.optimizer.update(learning_rate=RATE, warmup_steps=0, eps=EPSILON)
    for name, weight in WEIGHTS.items():
        described.data.datasets[name].weight = weight
    resolved = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    return dataclasses.replace(resolved, mesh=mesh, **changes)


def batches(num_shards: int) -> dict[str, schema.Batch]:
    """Returns batches with the same rows for any number of data shards.

    All chips of every mesh divide the 16 rows of one dataset; 16 chips do not divide the 8 rows of
    the other.
    """
    made = {
        "pages": small.batch(rows=16, length=16, images=2, seed=10, num_shards=MOST_SHARDS),
        "pairs": small.batch(rows=8, length=16, images=1, seed=11, num_shards=MOST_SHARDS),
    }
    for name, batch in made.items():
        # Some are the new tokens.
        batch.tokens[::2, 3], batch.tokens[::3, 5] = small.VOCABULARY, small.VOCABULARY + 1
        rows = np.arange(len(batch.tokens))[:, None]
        pool = len(batch.frames)
        place = batch.media_slot + rows * MOST_SHARDS // len(batch.tokens) * (pool // MOST_SHARDS)
        slot = place - rows * num_shards // len(batch.tokens) * (pool // num_shards)
        made[name] = dataclasses.replace(batch, media_slot=slot.astype(np.int32))
        schema.check(made[name], num_shards=num_shards, where=name)
    return made


@dataclasses.dataclass(frozen=True)
class Ran:
    """Results of an update: the state, on the devices, and the metrics."""

    state: Any
    metrics: dict[str, Any]

    @property
    def gradients(self) -> dict[str, np.ndarray]:
        """Sums over the datasets, before the clip."""
        return {
            path: np.asarray(leaf)
            for path, leaf in trees.flatten(self.state.opt_state[0].trace).items()
        }

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The trained weights, after the update."""
        return {
            path: np.asarray(leaf) for path, leaf in trees.flatten(self.state.trainable).items()
        }


@dataclasses.dataclass(frozen=True)
class Step:
    """The step of a run on a mesh; it is the step that trains."""

    mesh: jax.sharding.Mesh
    layout: StateLayout
    batches: dict[str, schema.Batch]
    lowered: Any

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiled step, without optimisations for the CPU: they do not change partitioning."""
        return self.lowered.compile(_QUICK)

    @functools.cached_property
    def first(self) -> Ran:
        """Results of the first update."""
        return self.run(start())

    def run(self, state: Any) -> Ran:
        """Does one update; it reuses the buffers of a state that is on this mesh already."""
        before = jax.device_put(state, self.layout.shardings)
        placed = {name: to_device(batch, self.mesh) for name, batch in self.batches.items()}
        after, metrics = self.compiled(before, placed, jax.random.key(2))
        return Ran(after, jax.device_get(metrics))

    def initial(self) -> Any:
        """Returns the initial state as numpy arrays, but with open gates.

        With closed gates the first update would change only the gates.
        """
        state = jax.tree.map(np.asarray, self.layout.init(jax.random.key(1)))
        opened = {
            path: np.full_like(leaf, 0.5) if path.endswith("_gate") else leaf
            for path, leaf in trees.flatten(state.trainable).items()
        }
        return dataclasses.replace(state, trainable=trees.unflatten(opened))


@functools.cache
def step_on(
    *sizes: int,
    compute: Literal["bfloat16", "float32"] = "float32",
    frozen: Literal["compute", "int8"] = "compute",
    datasets: tuple[str, ...] = tuple(WEIGHTS),
    changes: tuple[tuple[str, Any], ...] = (),
    made: Callable[[int], dict[str, schema.Batch]] = batches,
    **fields: Any,
) -> Step:
    """Returns the step on a mesh; its optimizer state also stores the gradient.

    Args:
        *sizes: replica, data, model; the mesh has the first devices.
        compute: dtype of the run.
        frozen: how frozen weights are stored.
        datasets: names of the datasets that an update uses.
        changes: other fields of the run, as (name, value).
        made: returns the batches for a number of data shards.
        **fields: other fields of MeshConfig.
    """
    policy = Policy(compute, frozen)
    config = run_config(MeshConfig(*sizes, **fields), precision=policy, **dict(changes))
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])

    def keep_gradients(*args: Any) -> optax.GradientTransformation:
        return optax.chain(optax.trace(decay=0.0), make_optimizer(*args))

    with mock.patch.object(run_lib.optimizer_lib, "make_optimizer", keep_gradients):
        run = run_lib.compile(config, mesh)
    rows = made(num_batch_shards(mesh))
    read = {name: rows[name] for name in datasets}
    return Step(
        mesh, run.layout, read, run.step.lower(run.layout.abstract, read, jax.random.key(2))
    )


@functools.cache
def start() -> Any:
    """Returns the state that all meshes start from: the initial state of one device."""
    return step_on(1, 1, 1).initial()


def report(path: str, *sizes: int) -> None:
    """Writes the initial state and the results of the first update, as float32 arrays by name."""
    step = step_on(*sizes)
    initial = step.initial()
    ran = step.run(initial)
    parts = {
        "initial": trees.flatten(initial.params()),
        "gradients": ran.gradients,
        "weights": ran.weights,
        "metrics": ran.metrics,
    }
    np.savez(
        path,
        **{f"{part}:{name}": leaf for part, tree in parts.items() for name, leaf in tree.items()},
    )


if __name__ == "__main__":
    report(sys.argv[1], *map(int, sys.argv[2:]))
