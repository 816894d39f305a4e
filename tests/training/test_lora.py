"""LoRA: adapters of the frozen language model, from their start to the export with them merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import overrides, trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.precision import is_int8
from flamingo_jax.core.stack import with_loops
from flamingo_jax.models import api
from flamingo_jax.models.cache import Media
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.nn.lora import is_adapter
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training import resume
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective
from flamingo_jax.training.state import abstract_weights, split, traits
from tests.training import small

ONE, KEY = jax.devices()[:1], jax.random.key(0)
TARGETS = ("query", "key", "value", "out", "up", "down")
RANK = 2


def described(*flags):
    """Returns the config of a run that trains adapters of all products, with `flags` changed."""
    config = small.get_config("flamingo")
    config.unfrozen, config.steps = ("lm.lora",), 2
    config.data.datasets.pages.batch_size = 2
    with config.data.datasets.unlocked():
        del config.data.datasets["pairs"]
    config.hooks.save_every = 1
    adapters = (f"model.lm.lora.rank={RANK}", f"model.lm.lora.targets={','.join(TARGETS)}")
    given = [f"--config.{flag}" for flag in (*adapters, *flags)]
    overrides.apply(TrainConfig, config, overrides.split(given)[1])
    return config


def read(*flags):
    return from_dict(TrainConfig, described(*flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["model.lm.lora.targets=query,qery"], r"lora\.targets\[1\] is 'qery'.*mean 'query'"),
        (["model.lm.lora.targets=()"], r"lora\.targets is \(\); expected at least one product"),
        (["model.lm.lora.targets=gate"], r"lora\.targets has 'gate', and activation is 'gelu'"),
        (["model.lm.lora.rank=0"], r"config\.model\.lm\.lora\.rank is 0"),
        (["model.lm.lora.alpha=0"], r"config\.model\.lm\.lora\.alpha is 0"),
        (["unfrozen=()"], r"model\.lm\.lora is given, and unfrozen is \(\)"),
        (["unfrozen=vision"], r"model\.lm\.lora is given, and unfrozen is \('vision',\)"),
        (["model.lm.lora=None"], r"unfrozen has 'lm\.lora', and model\.lm\.lora is None"),
        (["unfrozen=lm,lm.lora"], r"unfrozen has 'lm' and 'lm\.lora'"),
        (
            ["towers.lm=None", "towers.random=lm"],
            r"towers\.random has 'lm', and unfrozen is \('lm\.lora',\)",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(flags, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(*flags)
    assert "\n" not in str(error.value)


def test_a_language_model_alone_has_no_adapters():
    config = small.get_config("language_model")
    flags = ["--config.model.lm.lora.rank=2"]
    overrides.apply(TrainConfig, config, overrides.split(flags)[1])
    with pytest.raises(ConfigError, match="the language_model stage trains the whole"):
        from_dict(TrainConfig, config)


def test_adapters_alone_are_trained_without_decay():
    """Of the language model; all else is as without them. Its frozen products are fused."""
    config = read().resolved(small.VOCABULARY)
    objective = build_objective(config, num_shards=1)
    trainable, frozen = split(objective, jax.eval_shape(objective.model.init, KEY))
    of_lm = [path for path in trees.flatten(trainable) if path.startswith("flamingo/lm/")]
    names = [(name, part) for name in TARGETS for part in "ab"]
    assert sorted(tuple(path.split("/")[-2:]) for path in of_lm) == sorted(
        (f"{name}_lora", part) for name, part in names
    )
    decay = traits(objective, abstract_weights(objective)).decay
    assert {decay[path] for path in of_lm} == {0.0}
    assert not any(map(is_adapter, trees.flatten(frozen)))
    computed = jax.eval_shape(objective.model.compute_form, frozen)
    assert "flamingo/lm/blocks/block/attention/qkv" in computed


def read_images(model, params, batch):
    """Returns (losses of a batch, logits of the same tokens read in two parts with a cache)."""
    pool = model.encode(params, batch.frames, batch.frame_mask)
    cache = model.empty_cache(len(batch.tokens), 8, jnp.float32, params)
    at = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1])[None], batch.tokens.shape)
    media, index = Media(pool, batch.media_slot), jnp.asarray(batch.media_index)
    first, cache = model.extend(params, cache, batch.tokens[:, :4], at[:, :4], index[:, :4], media)
    last, _ = model.extend(params, cache, batch.tokens[:, 4:], at[:, 4:], index[:, 4:])
    return model.token_losses(params, batch), first, last


def jit(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("layers", ["scanned", "unrolled"])
def test_at_the_start_the_model_is_what_it_was_to_the_bit(layers):
    """In training and with a cache."""
    config = read().resolved(small.VOCABULARY).model
    make = functools.partial(api.flamingo, compute_form=True)
    with_them, without = make(config.flamingo()), make(config.without_adapters().flamingo())
    params = with_them.compute_form(jit(with_them.init)(KEY))
    gates = {path: w for path, w in trees.flatten(params).items() if path.endswith("_gate")}
    params = trees.unflatten(trees.flatten(params) | {path: w + 1 for path, w in gates.items()})
    others = {path: not is_adapter(path) for path in trees.flatten(params)}
    plain, adapters = trees.partition(params, others)
    assert len(trees.flatten(adapters)) == 2 * len(TARGETS)
    batch = small.batch(rows=2, length=6, images=1, seed=0)
    with with_loops(layers):
        got = jit(functools.partial(read_images, with_them))(params, batch)
        expected = jit(functools.partial(read_images, without))(plain, batch)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run with the frozen towers in 8 bits."""
    place = tmp_path_factory.mktemp("place")
    world = small.make_world(place / "world")
    towers = small.make_towers(place / "towers", world)
    described_here = described("precision.frozen=int8", "precision.compute=float32")
    return from_dict(TrainConfig, small.with_world(described_here, world, towers))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """(workdir, last state) of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run_lib.train(config, workdir, devices=ONE)


def test_the_frozen_weights_are_equal_to_the_bit_after_training(config, done):
    resolved = config.resolved(resume.tokenizer_of(config).vocab_size)
    layout = run_lib.compile(resolved, make_mesh(config.mesh, ONE)).layout
    begun = resume.init(resolved, layout, KEY).state
    assert any(map(is_int8, jax.tree.leaves(begun.frozen, is_leaf=is_int8)))
    jax.tree.map(np.testing.assert_array_equal, done[1].frozen, begun.frozen)
    adapters = {p: w for p, w in trees.flatten(done[1].trainable).items() if is_adapter(p)}
    assert len(adapters) == 2 * len(TARGETS)
    assert min(float(jnp.max(jnp.abs(w))) for w in adapters.values()) > 1e-3


def test_a_run_in_two_halves_is_the_whole_run(config, done, tmp_path):
    run_lib.train(dataclasses.replace(config, steps=1), tmp_path, devices=ONE)
    second = run_lib.train(config, tmp_path, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, second.saved(), done[1].saved())


def test_the_export_is_a_plain_flamingo_with_the_logits_of_the_adapted_one(config, done):
    """1e-5 of the largest logit: float32 sums in another order."""
    exported, step = open_checkpoint(done[0] / "export"), open_checkpoint(done[0])
    assert not any(map(is_adapter, trees.flatten(exported.params)))
    assert exported.model_config["lm"]["lora"] is None
    batch = small.batch(rows=2, length=6, images=1, seed=0)

    def read_by(opened):
        model = api.flamingo(from_dict(ModelConfig, opened.model_config).flamingo())
        return jit(functools.partial(read_images, model))(opened.params, batch)

    merged, adapted = read_by(exported), read_by(step)
    for got, expected in zip(merged, adapted, strict=True):
        error = 1e-5 * float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(got, expected, rtol=0, atol=error)
    plain, _ = trees.partition(
        step.params, {path: not is_adapter(path) for path in trees.flatten(step.params)}
    )
    changed = {
        path.removeprefix("flamingo/lm/blocks/block/").removesuffix("/w")
        for path, w in trees.flatten(exported.params).items()
        if np.any(np.asarray(w) != np.asarray(trees.flatten(plain)[path]))
    }
    attention = {f"attention/{name}" for name in TARGETS[:4]}
    assert changed == attention | {f"mlp/{name}" for name in TARGETS[4:]}
    # Further training takes the merged language model.
    again = dataclasses.replace(config, initial=str(done[0]), towers=type(config.towers)())
    resolved = again.resolved(resume.tokenizer_of(again).vocab_size)
    layout = run_lib.compile(resolved, make_mesh(again.mesh, ONE)).layout
    begun = resume.init(resolved, layout, KEY).state.trainable
    zeros = [w for path, w in trees.flatten(begun).items() if path.endswith("_lora/b")]
    assert len(zeros) == len(TARGETS) and not any(map(np.any, zeros))
