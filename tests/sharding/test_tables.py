"""Shardings of every weight of the full-size models, in training and in checkpoints.

Nothing is allocated.
"""

import math

import jax
import pytest

from configs import flamingo_3b, flamingo_9b, flamingo_80b
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.sharding import chips

CONFIGS = {"3b": flamingo_3b, "9b": flamingo_9b, "80b": flamingo_80b}
PIECES = 32_000


def compile_run(name):
    config = from_dict(TrainConfig, CONFIGS[name].get_config()).resolved(PIECES)
    mesh = chips.mesh(*config.mesh.sizes().values())
    return mesh, run_lib.compile(config, mesh)


def described(spec):
    """Returns the mesh axes of each dimension, such as "-, data, model"."""
    names = [(entry,) if isinstance(entry, str) else entry or ("-",) for entry in spec]
    return ", ".join("+".join(entry) for entry in names) or "-"


def num_bytes(leaf, sharding):
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


@pytest.mark.parametrize("name", CONFIGS)
def test_shardings_of_every_weight(name, golden):
    """One line per weight: path, shape, dtype and mesh axes while it is computed with.

    The line of a trained weight also has dtype and mesh axes of its float32 weight and moments.
    """
    mesh, run = compile_run(name)
    layout, policy = run.layout, TrainConfig.precision
    frozen, trained, gathered = (
        trees.flatten(tree)
        for tree in (layout.abstract.frozen, layout.abstract.trainable, layout.gathered)
    )
    held = dict.fromkeys(
        ("frozen", "trained, to compute with", "trained, float32", "moments, float32"), 0
    )
    lines = [f"mesh {dict(mesh.shape)}"]
    for path, leaf in frozen.items():
        lines.append(f"{path} {list(leaf.shape)} {leaf.dtype} | {described(leaf.sharding.spec)}")
        held["frozen"] += num_bytes(leaf, leaf.sharding)
    for path, leaf in trained.items():
        computed = jax.eval_shape(policy.cast, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        whole, part = described(gathered[path].spec), described(leaf.sharding.spec)
        lines.append(
            f"{path} {list(leaf.shape)} {computed.dtype} | {whole} | {leaf.dtype} | {part}"
        )
        held["trained, to compute with"] += num_bytes(computed, gathered[path])
        held["trained, float32"] += num_bytes(leaf, leaf.sharding)
    for leaf in jax.tree.leaves(layout.abstract.opt_state):
        held["moments, float32"] += num_bytes(leaf, leaf.sharding)
    weights = trees.flatten(
        jax.eval_shape(run.objective.model.compute_form_init, jax.random.key(0))
    )
    assert len(lines) - 1 == len(weights) and set(frozen) | set(trained) == set(weights)
    lines += [f"bytes per chip: {what} {size:,}" for what, size in held.items()]
    golden(f"sharding/flamingo_{name}.txt", "\n".join(lines))
