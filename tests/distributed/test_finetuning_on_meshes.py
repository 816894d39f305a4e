"""Fine-tuning the vision encoder gives the same step on every mesh (paper, B.1.3, B.2.2).

The norms of adaptive clipping are sums over parts on different chips, and ZeRO-1 splits the
encoder's float32 weights. Bounds are as in test_step_on_meshes.py; the clipped gradient of the
encoder is smaller than the gradient, and so is its error.
"""

import dataclasses

import jax
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.optimizer import VisionOptimizerConfig
from tests.distributed import meshes
from tests.distributed.test_step_on_meshes import assert_same_step, part
from tests.training import small

VISION_RATE, AGC = meshes.RATE / 4, 0.01


def changes():
    """Returns fields of a run with two encoder blocks; one is dropped for some images.

    These images are the same on every mesh.
    """
    run = meshes.run_config(MeshConfig())
    vision = dataclasses.replace(run.model.vision, depths=(2,), stochastic_depth=0.8)
    optimizer = dataclasses.replace(
        run.optimizer, vision=VisionOptimizerConfig(learning_rate=VISION_RATE, agc=AGC)
    )
    # These compile quickly.
    lm = dataclasses.replace(run.model.lm, num_layers=2, position="learned", remat="none")
    model = dataclasses.replace(run.model, vision=vision, lm=lm)
    return ("model", model), ("unfrozen", ("vision",)), ("optimizer", optimizer)


def few_images(num_shards):
    """Returns four images, fewer than chips; chips of a model group encode the same ones.

    A fine-tuning batch of 8 does this too.
    """
    return {"pairs": small.batch(rows=4, length=16, images=1, seed=11, num_shards=num_shards)}


def step_on(*sizes, **fields):
    return meshes.step_on(*sizes, datasets=("pairs",), changes=changes(), made=few_images, **fields)


@pytest.fixture(scope="module")
def initial():
    """The initial state on one device."""
    return step_on(1, 1, 1).initial()


@pytest.fixture(scope="module")
def reference(initial):
    return step_on(1, 1, 1).run(initial)


@pytest.mark.parametrize(
    "zero", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["zero", "whole"]
)
def test_a_finetuning_step_is_the_same_on_eight_devices(initial, reference, zero):
    ran = step_on(1, 2, 4, zero=zero).run(initial)
    assert_same_step(ran.gradients, ran.weights, ran.metrics, reference)
    held = [
        part(leaf)
        for path, leaf in trees.flatten(ran.state.trainable).items()
        if "vision" in path and leaf.size > 99
    ]
    assert set(held) == ({1 / 8, 1 / 2} if zero else {1})  # three colours are split over data alone


def test_the_encoder_is_clipped_and_moves_by_its_own_rate(initial, reference):
    """Equal steps prove something only if weights move and clips act.

    A first update is rate * g / (|g| + eps), with g after the clip.
    """
    before = trees.flatten(jax.tree.map(np.asarray, initial.trainable))
    clipped = moved = 0
    for path, gradient in reference.gradients.items():
        step = np.max(np.abs(reference.weights[path] - before[path]))
        if "/vision/" not in path:
            continue
        assert step > 0, f"{path} does not move"
        assert step < 1.01 * VISION_RATE
        moved += 1
        largest = np.max(np.abs(gradient))
        clipped += bool(step < 0.5 * VISION_RATE * largest / (largest + meshes.EPSILON))
    assert moved > 10 and clipped > 0
    assert reference.metrics["learning_rate/vision"] == pytest.approx(VISION_RATE)
