"""Training the language model too, from its weights or from nothing (paper, Table 3, row viii)."""

import dataclasses

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import overrides, trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.precision import Int8Weight
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training import resume, towers
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.training import small

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with world/ and random exports of towers/{lm,vision}."""
    directory = tmp_path_factory.mktemp("place")
    small.make_towers(directory / "towers", small.make_world(directory / "world"))
    return directory


@pytest.fixture(scope="module")
def described(place):
    """The config of a run that trains the language model from the weights of its export."""
    config = small.with_world(small.get_config("flamingo"), place / "world", place / "towers")
    config.unfrozen, config.steps = ("lm",), 2
    with config.data.datasets.unlocked():
        del config.data.datasets["pages"]
    config.hooks.save_every = 1
    return config


def read(config, *flags):
    """Returns a run with fields of the command line."""
    config = config.copy_and_resolve_references()
    overrides.apply(TrainConfig, config, overrides.split(flags)[1])
    return from_dict(TrainConfig, config)


def from_nothing(config, *flags):
    return read(config, "--config.towers.lm=None", "--config.towers.random=lm", *flags)


def begun(config):
    """Returns (config, layout, trained weights with those that a new run reads from exports)."""
    config = config.resolved(resume.tokenizer_of(config).vocab_size)
    layout = run_lib.compile(config, make_mesh(config.mesh, ONE)).layout
    return config, layout, towers.start(config, layout.abstract.trainable)


def of_lm(params, prefix="flamingo/lm"):
    return trees.flatten(trees.subtree(params, prefix))


def test_the_language_model_starts_with_the_weights_of_its_export(described, place):
    _, layout, trained = begun(read(described))
    exported = of_lm(open_checkpoint(place / "towers" / "lm").params, "lm")
    jax.tree.map(np.testing.assert_array_equal, of_lm(trained), exported)
    frozen = trees.flatten(layout.abstract.frozen)
    assert {path.split("/")[1] for path in frozen} == {"vision"}


def test_from_nothing_no_export_is_read(described):
    """Only that of the vision encoder; what is not read stays random."""
    config, layout, trained = begun(from_nothing(described))
    assert trained == layout.abstract.trainable and of_lm(trained)
    assert list(towers.frozen_records(config)) == ["vision"] and not towers.start_records(config)


def test_with_8_bits_the_frozen_tower_alone_has_them(described):
    _, layout, _ = begun(from_nothing(described, "--config.precision.frozen=int8"))
    frozen = trees.flatten(layout.abstract.frozen)
    rounded = {path for path, leaf in frozen.items() if isinstance(leaf, Int8Weight)}
    assert rounded and all(path.startswith("flamingo/vision/") for path in rounded)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["unfrozen=()", "towers.lm=None", "towers.random=lm"],
            r"towers\.random has 'lm', and unfrozen is \(\)",
        ),
        (["towers.random=lm"], r"towers\.random has 'lm', and lm is '.*lm'"),
        (["towers.random=llm"], r"towers\.random\[0\] is 'llm'; .*did you mean 'lm'"),
        (["unfrozen=lm,vision", "precision.frozen=int8"], r"'int8', and unfrozen is .*: no tower"),
        (["stage=language_model"], r"the language_model stage freezes nothing"),
    ],
)
def test_what_makes_no_sense_is_one_line(described, flags, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(described, *(f"--config.{flag}" for flag in flags))
    assert "\n" not in str(error.value)


def test_a_missing_tower_is_one_line(described):
    config = read(described, "--config.towers.lm=None")
    with pytest.raises(ConfigError, match=r"towers\.lm is None.*nothing: .*towers\.random=lm\.$"):
        towers.check_start(config)


@pytest.fixture(scope="module")
def done(described, tmp_path_factory):
    """(workdir, last state) of a finished run that trains the language model from nothing."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run_lib.train(from_nothing(described), workdir, devices=ONE)


def test_a_run_in_two_halves_is_the_whole_run(done, described, tmp_path):
    config = from_nothing(described)
    run_lib.train(dataclasses.replace(config, steps=1), tmp_path, devices=ONE)
    second = run_lib.train(config, tmp_path, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, second.saved(), done[1].saved())


def test_another_start_is_another_run(done, described):
    with pytest.raises(CheckpointError, match=r"towers\.random: \['lm'\] -> \[\]"):
        run_lib.train(read(described), done[0], devices=ONE)


def test_the_export_has_the_trained_language_model(done, described):
    """Further training begins with it; it is frozen then, or trained again."""
    workdir, state = done
    exported = open_checkpoint(workdir / "export").params
    jax.tree.map(np.testing.assert_array_equal, of_lm(exported), of_lm(state.trainable))
    jax.tree.map(np.testing.assert_array_equal, exported, open_checkpoint(workdir).params)
    flags = ("--config.towers.lm=None", "--config.towers.vision=None")
    initial = f"--config.initial={workdir}"
    _, _, again = begun(read(described, *flags, initial))
    jax.tree.map(np.testing.assert_array_equal, of_lm(again), of_lm(state.trainable))
    config, layout, again = begun(read(described, *flags, initial, "--config.unfrozen=()"))
    assert not of_lm(again)
    frozen = towers.load(config, layout.stored_frozen)
    jax.tree.map(np.testing.assert_array_equal, of_lm(frozen), of_lm(state.trainable))
