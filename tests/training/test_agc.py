"""Adaptive gradient clipping against NumPy, for every kind of weight (Brock et al. 2021)."""

import itertools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.params import axes_of
from flamingo_jax.models import vit
from flamingo_jax.training.agc import SMALLEST_NORM, clip_units
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective
from tests.training import small

CLIP = 0.01
# Jitted: without jit each shape costs ten compilations.
clip = jax.jit(clip_units, static_argnums=(2, 3))
CONV = ("kernel", "kernel", "vision", "vision")
# {kind: (axes, shape, number of last axes that are outputs)}; 0 outputs: a vector or scalar, which
# is one unit.
KINDS = {
    "convolution": (CONV, (3, 3, 4, 5), 1),
    "stacked convolution": (("layers", *CONV), (2, 3, 3, 4, 5), 1),
    "linear": (("vision", "vision"), (6, 5), 1),
    "stacked linear": (("layers", "vision", "vision"), (3, 6, 5), 1),
    "into heads": (("vision", "heads", "head_dim"), (6, 2, 3), 2),
    "stacked into heads": (("layers", "vision", "vision", "head_dim"), (2, 6, 2, 3), 2),
    "out of heads": (("heads", "head_dim", "vision"), (2, 3, 6), 1),
    "gain or bias": (("vision",), (5,), 0),
    "stacked gain or bias": (("layers", "vision"), (3, 5), 0),
    "stacked bias of heads": (("layers", "vision", "head_dim"), (3, 2, 4), 0),
    "scalar": ((), (), 0),
    "stacked scalar": (("layers",), (4,), 0),
    "twice stacked scalar": (("layers", "layers"), (2, 3), 0),
}


def reference(gradient, weight, axes, outputs):
    """Unit by unit, in float64."""
    gradient, weight = np.asarray(gradient, np.float64), np.asarray(weight, np.float64)
    clipped = gradient.copy()
    layers = axes.count("layers")
    by_unit = [range(size) for size in gradient.shape[:layers]]
    by_unit += [[slice(None)]] * (gradient.ndim - layers - outputs) + [
        range(size) for size in gradient.shape[gradient.ndim - outputs :]
    ]
    for unit in itertools.product(*by_unit):
        limit = CLIP * max(np.sqrt(np.sum(np.square(weight[unit]))), SMALLEST_NORM)
        norm = np.sqrt(np.sum(np.square(gradient[unit])))
        if norm > limit:
            clipped[unit] = gradient[unit] * limit / norm
    return clipped


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_is_clipped_by_itself(kind):
    """Some gradients are clipped, others not. 1e-5: float32 norms of at most 36 terms."""
    axes, shape, outputs = KINDS[kind]
    rng = np.random.default_rng(sum(map(ord, kind)))
    weight = np.asarray(rng.normal(size=shape), np.float32)
    clipped = kept = False
    for size in (1e-4, 1e-2, 1e2):
        spread = np.exp(2 * rng.normal(size=shape))
        gradient = np.asarray(size * spread * rng.normal(size=shape), np.float32)
        expected = reference(gradient, weight, axes, outputs)
        got = np.asarray(clip(gradient, weight, axes, CLIP))
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        clipped |= bool(np.any(got != gradient))
        kept |= bool(np.any(got == gradient))
    assert clipped and kept


def test_a_weight_of_zero_may_move_and_a_gradient_of_zero_stays():
    """A gain starts at 0 (SkipInit); its gradient may then be 1 % of 1e-3."""
    np.testing.assert_allclose(clip(jnp.ones(()), jnp.zeros(()), (), CLIP), 1e-5, rtol=1e-6)
    nothing = np.zeros((6, 5), np.float32)
    np.testing.assert_array_equal(clip(nothing, nothing, ("vision", "vision"), CLIP), 0.0)


def weights_of(name):
    """Returns {path: (axes, shape)} of the contrastive stage, or of a ViT."""
    if name == "vit":
        config = vit.ViTConfig(
            patch_size=8, width=8, num_layers=2, num_heads=2, mlp_width=16, image_size=16
        )
        model = hk.transform(lambda x: vit.ViT(config, name="vision")(x))
        init = lambda key: model.init(key, jnp.zeros((1, 16, 16, 3)))
    else:
        described = small.get_config("contrastive")
        described.model.vision.update(depths=(3,), se_ratio=0.5, final_multiplier=2.0)
        init = build_objective(
            from_dict(TrainConfig, described).resolved(small.VOCABULARY), num_shards=1
        ).model.init
    axes = axes_of(init, jax.random.key(0))
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0)))
    return {path: (axes[path], leaf.shape) for path, leaf in shapes.items()}


def units(axes, shape):
    """Returns the number of units of a weight.

    Each unit has another limit, so a uniform gradient gets as many values as there are units.
    """
    rng = np.random.default_rng(0)
    weight = np.asarray(1 + rng.random(shape), np.float32)
    return len(np.unique(np.asarray(clip(np.full(shape, 1e3, np.float32), weight, axes, CLIP))))


def test_units_of_an_nfnet_are_its_output_channels():
    """A gain or bias is one unit per layer, not per channel.

    The NFNet has 16 channels and 3 blocks, of which 2 are stacked.
    """
    weights, stage = weights_of("nfnet"), "stage0"
    expected = {
        "stem_conv0/w": 8,
        "stem_conv0/gain": 1,
        f"{stage}/first/conv2/w": 16,
        f"{stage}/rest/conv2/w": 2 * 16,
        f"{stage}/rest/conv2/gain": 2,
        f"{stage}/rest/conv2/bias": 2,
        f"{stage}/rest/skip/gain": 2,
        f"{stage}/rest/squeeze/w": 2 * 8,
        f"{stage}/rest/squeeze/b": 2,
        "final_conv/w": 32,
    }
    assert {path: units(*weights[f"contrastive/vision/{path}"]) for path in expected} == expected


def test_units_of_a_vit_are_its_output_channels():
    weights, block = weights_of("vit"), "layers/block"
    expected = {
        "patch_embedding/w": 8,
        "positions": 8,
        "class_embedding": 1,
        f"{block}/attention/query/w": 2 * 8,
        f"{block}/attention/query/b": 2,
        f"{block}/attention/out/w": 2 * 8,
        f"{block}/mlp/up/w": 2 * 16,
        f"{block}/mlp/up/b": 2,
        f"{block}/mlp/down/w": 2 * 8,
    }
    assert {path: units(*weights[f"vision/{path}"]) for path in expected} == expected
