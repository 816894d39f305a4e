"""An open language model on a mesh.

Grouped heads fewer than the chips, biases on queries, keys and values alone, an untied head; and
what Gemma has: norms before and after each part and on each head, a window and another rotary base
in every other layer, bounded scores and logits, scaled embeddings.
"""

import dataclasses

import jax
import numpy as np

from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.to_device import to_device
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.training import small

LM = {
    "norm": "rms",
    "norm_epsilon": 1e-6,
    "position": "rotary",
    "activation": "geglu",
    "width": 32,
    "num_heads": 8,
    "num_kv_heads": 2,  # of a model axis of 4 chips: on each of them
    "mlp_width": 48,
    "mlp_bias": False,
    "qkv_bias": True,
    "sliding_window": 5,
    "global_every": 2,
    "local_rotary_base": 100.0,
    "norm_place": "both",
    "norm_from_one": True,
    "head_norm": True,
    "score_size": 6,
    "score_cap": 5.0,
    "logit_cap": 9.0,
    "scaled_embedding": True,
    "tied_head": False,
    "qkv_conv_width": 0,
    "remat": "projections",
}


def step_on(*sizes):
    """(the layout, what the first update gives: weights and metrics) on a mesh of these sizes."""
    described = small.get_config("language_model")
    described.model.lm.update(LM)
    described.optimizer.update(warmup_steps=0, eps=1e-3)
    config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    config = dataclasses.replace(config, mesh=MeshConfig(*sizes), precision=Policy("float32"))
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    run = run_lib.compile(config, mesh)
    batch = {"text": to_device(small.batch(rows=8, length=16, images=0, seed=3), mesh)}
    state, key = run.layout.init(jax.random.key(1)), jax.random.key(2)
    step = run.step.lower(state, batch, key).compile({"xla_backend_optimization_level": 0})
    after, metrics = step(state, batch, key)
    return run.layout, trees.flatten(jax.device_get(after.trainable)), jax.device_get(metrics)


def test_a_step_is_the_same_on_a_mesh_as_on_one_device():
    """1e-5: float32 sums in another order.

    Through AdamW an error of a gradient moves a weight by up to 1e-2 / 1e-3 times as much.
    """
    (_, expected, reference), (layout, weights, metrics) = step_on(1, 1, 1), step_on(1, 2, 4)
    for name, number in reference.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-5, atol=1e-7, err_msg=name)
    for path, leaf in expected.items():
        np.testing.assert_allclose(weights[path], leaf, rtol=1e-5, atol=1e-4, err_msg=path)
    specs = {
        path: leaf.sharding.spec for path, leaf in trees.flatten(layout.abstract.trainable).items()
    }
    for name, axis in (("query", "model"), ("key", None), ("value", None)):
        assert [
            part for part in specs[f"lm/blocks/block/attention/{name}/b"] if part == "model"
        ] == [axis] * bool(axis)
