"""The three objectives on real models: tables, normalisation, gates.

Shapes are used instead of arrays where they are enough.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.data.config import NO_AUGMENTATION
from flamingo_jax.data.images.augment import augment
from flamingo_jax.models.losses import DIVISORS, weighted_sum
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective
from flamingo_jax.training.state import abstract_weights, split, traits
from tests.training import small

KEY = jax.random.key(0)


@pytest.fixture(scope="module", params=["language_model", "contrastive", "flamingo"])
def objective(request):
    config = from_dict(TrainConfig, small.get_config(request.param)).resolved(small.VOCABULARY)
    return build_objective(config, num_shards=1)


def test_tables_cover_each_weight_exactly_once(objective):
    shapes = jax.eval_shape(objective.model.init, KEY)
    trainable, frozen = split(objective, shapes)
    assert set(trees.flatten(trainable)) | set(trees.flatten(frozen)) == set(trees.flatten(shapes))
    known = traits(objective, abstract_weights(objective))
    assert set(known.decay) == set(known.group) == set(trees.flatten(trainable))


def test_flamingo_freezes_both_towers_and_does_not_decay_the_resampler():
    """Paper, 2.2 and B.1.2."""
    config = from_dict(TrainConfig, small.get_config("flamingo")).resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    trainable, frozen = split(objective, jax.eval_shape(objective.model.init, KEY))
    part = lambda path: path.split("/")[1]
    assert {part(path) for path in trees.flatten(frozen)} == {"vision", "lm"}
    assert {part(path) for path in trees.flatten(trainable)} == {
        "resampler",
        "media",
        "xattn",
        "new_tokens",
    }
    factors = traits(objective, abstract_weights(objective)).decay
    assert {factor for path, factor in factors.items() if part(path) == "resampler"} == {0.0}
    assert {factor for path, factor in factors.items() if part(path) != "resampler"} == {1.0}
    gates = objective.gauges(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), trainable))
    layers = config.model.lm.num_layers
    assert {name: gate.shape for name, gate in gates.items()} == {
        "gates/attention": (layers,),
        "gates/dense": (layers,),
    }


def test_contrastive_temperature_is_not_decayed():
    config = from_dict(TrainConfig, small.get_config("contrastive")).resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    factors = traits(objective, abstract_weights(objective)).decay
    assert [path for path, factor in factors.items() if factor == 0.0] == [
        "contrastive/log_temperature"
    ]


def test_loss_is_the_mean_over_the_predicted_tokens_of_the_whole_batch():
    nll = jnp.array([[1.0, 2.0], [3.0, 100.0]])
    weights = jnp.array([[1.0, 1.0], [0.5, 0.0]])
    mean = lambda weights: float(weighted_sum(nll, weights, DIVISORS["tokens"](weights)))
    assert mean(weights) == pytest.approx((1 + 2 + 1.5) / 2.5)
    assert mean(jnp.zeros((2, 2))) == 0.0


def test_padding_does_not_count():
    """The same text in rows of two lengths; 1e-6: float32 sums in another order."""
    config = from_dict(TrainConfig, small.get_config("language_model")).resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    params = jax.jit(objective.model.init)(KEY)
    short = small.batch(rows=2, length=6, images=0, seed=1)
    blank = lambda array: np.pad(array, [(0, 0), (0, 3)])
    padded = {
        name: blank(getattr(short, name))
        for name in ("tokens", "segment", "loss_weights", "media_index")
    }
    longer = dataclasses.replace(short, **padded)
    loss = jax.jit(objective.loss)
    np.testing.assert_allclose(loss(params, short, KEY)[0], loss(params, longer, KEY)[0], rtol=1e-6)


def test_contrastive_needs_an_image_for_each_text():
    config = from_dict(TrainConfig, small.get_config("contrastive")).resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    batch = small.batch(rows=2, length=6, images=2, seed=0)
    with pytest.raises(ValueError, match="2 texts and a pool of 4 images"):
        jax.eval_shape(objective.loss, jax.eval_shape(objective.model.init, KEY), batch, KEY)


@pytest.mark.parametrize("stage", ["contrastive", "flamingo"])
def test_augmentation_follows_the_keys_of_the_batch(stage):
    """With augmentation the loss depends on the keys; without it, it does not.

    The loss equals that of images augmented beforehand.
    """
    config = from_dict(TrainConfig, small.get_config(stage)).resolved(small.VOCABULARY)
    plain = dataclasses.replace(
        config, data=dataclasses.replace(config.data, augment=NO_AUGMENTATION)
    )
    with_it, without = (build_objective(c, num_shards=1) for c in (config, plain))
    shapes = jax.eval_shape(with_it.model.init, KEY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    batch = small.batch(rows=2, length=6, images=1, seed=0)
    other = dataclasses.replace(batch, media_key=batch.media_key + np.uint32(1))
    augmented = dataclasses.replace(
        batch,
        frames=jax.jit(augment, static_argnums=2)(
            batch.frames, batch.media_key, config.data.augment
        ),
        media_key=None,
    )
    loss = {
        on: jax.jit(lambda b, o=o: o.loss(o.model.compute_form(params), b, KEY)[0])
        for on, o in ((True, with_it), (False, without))
    }
    assert loss[True](batch) != loss[True](other)
    assert loss[False](batch) == loss[False](other)
    np.testing.assert_allclose(loss[True](batch), loss[False](augmented), rtol=1e-6)


def finetuning(**vision):
    """Returns the objective that trains the vision encoder too; `vision` changes its config."""
    described = small.get_config("flamingo")
    described.unfrozen = ("vision",)
    described.model.vision.update(vision)
    return build_objective(
        from_dict(TrainConfig, described).resolved(small.VOCABULARY), num_shards=1
    )


def test_finetuning_trains_the_vision_encoder_in_its_stored_form_and_without_decay():
    """The language model stays frozen, in the compute form (paper, B.2.2).

    The vision encoder's weight standardisation is part of the trained function.
    """
    objective = finetuning()
    trainable, frozen = split(objective, jax.eval_shape(objective.model.init, KEY))
    part = lambda path: path.split("/")[1]
    assert {part(path) for path in trees.flatten(frozen)} == {"lm"}
    assert {part(path) for path in trees.flatten(trainable)} == {
        "vision",
        "resampler",
        "media",
        "xattn",
        "new_tokens",
    }
    known = traits(objective, abstract_weights(objective))
    assert {part(path) for path, group in known.group.items() if group == "vision"} == {"vision"}
    assert {part(path) for path, factor in known.decay.items() if factor == 0.0} == {
        "vision",
        "resampler",
    }
    computed = jax.eval_shape(objective.model.compute_form, trees.merge(trainable, frozen))
    assert set(trees.flatten(computed)) == set(
        trees.flatten(jax.eval_shape(objective.model.compute_form_init, KEY))
    )
    assert "flamingo/vision/stem_conv0/gain" in trees.flatten(computed)
    assert any(path.endswith("/qkv/w") for path in trees.flatten(computed))


def test_a_language_model_that_is_trained_is_decayed_and_in_its_stored_form():
    """Paper, Table 3, row viii, and B.1.2: all but the resampler is decayed."""
    described = small.get_config("flamingo")
    described.unfrozen = ("lm",)
    config = from_dict(TrainConfig, described).resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    trainable, frozen = split(objective, jax.eval_shape(objective.model.init, KEY))
    part = lambda path: path.split("/")[1]
    assert {part(path) for path in trees.flatten(frozen)} == {"vision"}
    known = traits(objective, abstract_weights(objective))
    assert {known.decay[path] for path in known.decay if part(path) == "lm"} == {1.0}
    assert {part(path) for path, factor in known.decay.items() if factor == 0.0} == {"resampler"}
    groups = {(group, part(path) == "lm") for path, group in known.group.items()}
    assert groups == {("lm", True), ("rest", False)}
    computed = trees.flatten(
        jax.eval_shape(objective.model.compute_form, trees.merge(trainable, frozen))
    )
    assert not any("/qkv/" in path for path in computed)
    assert "flamingo/vision/stem_conv0/gain" not in computed


def test_groups_of_the_contrastive_stage():
    """The NFNet has adaptive clipping; all other weights the global norm (paper, B.1.3)."""
    config = from_dict(TrainConfig, small.get_config("contrastive")).resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    known = traits(objective, abstract_weights(objective))
    of = lambda group: {path.split("/")[1] for path, found in known.group.items() if found == group}
    assert of("vision") == {"vision"}
    assert of("rest") == {"text", "vision_projection", "text_projection", "log_temperature"}


def test_blocks_of_a_trained_vision_encoder_are_dropped_by_key():
    """Stochastic depth is on if the encoder is trained, and off if it is frozen."""
    # The second block is dropped for half of the images.
    dropping = {"depths": (2,), "stochastic_depth": 1.0}
    batch = small.batch(rows=8, length=6, images=1, seed=0)
    described = small.get_config("flamingo")
    described.model.vision.update(dropping)
    frozen = build_objective(
        from_dict(TrainConfig, described).resolved(small.VOCABULARY), num_shards=1
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(frozen.model.init, KEY)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )
    for objective, differs in ((finetuning(**dropping), True), (frozen, False)):
        compute = lambda key, b, o=objective: o.loss(o.model.compute_form(params), b, key)[0]
        # Compilation takes most of the time.
        loss = jax.jit(compute, compiler_options={"xla_backend_optimization_level": 0})
        losses = {float(loss(jax.random.key(i), batch)) for i in range(4)}
        assert (len(losses) > 1) == differs
