"""Frozen towers in 8 bits are made while they are read, a few weights at a time."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from etils import epath

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.precision import Int8Weight, Policy
from flamingo_jax.nn.conv import standardise_weights
from flamingo_jax.sharding.mesh import make_mesh
from flamingo_jax.training import resume, towers
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.training import small


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    world = small.make_world(tmp_path_factory.mktemp("world"))
    exports = small.make_towers(tmp_path_factory.mktemp("towers"), world)
    described = small.with_world(small.get_config("flamingo"), world, exports)
    described.precision.update(compute="bfloat16", frozen="int8")
    return from_dict(TrainConfig, described)


def test_towers_are_rounded_from_what_their_exports_hold(config, monkeypatch):
    """Not from bfloat16; a convolution after it was standardised."""
    reads, read = [], arrays.read
    monkeypatch.setattr(
        arrays, "read", lambda directory, like: reads.append(like) or read(directory, like)
    )
    monkeypatch.setattr(arrays, "chunks", functools.partial(arrays.chunks, num_bytes=2**13))
    config = config.resolved(resume.tokenizer_of(config).vocab_size)
    layout = run_lib.compile(config, make_mesh(config.mesh, jax.devices()[:1])).layout
    read_towers = towers.load(config, layout.read_frozen, rounded=layout.rounded)
    frozen = layout.compute_form(read_towers)
    assert len(reads) > 4
    assert (
        max(sum(leaf.size for leaf in like.values()) for like in reads)
        < sum(leaf.size for like in reads for leaf in like.values()) / 2
    )
    same = lambda made, shape: (made.shape, made.dtype) == (shape.shape, shape.dtype)
    assert jax.tree.all(jax.tree.map(same, frozen, layout.abstract.frozen))
    monkeypatch.undo()
    lm = trees.flatten(open_checkpoint(config.towers.lm).params)
    vision = trees.flatten(open_checkpoint(config.towers.vision).params)
    first = "vision/stage0/first/conv0"
    w = standardise_weights(vision[f"contrastive/{first}/w"], vision[f"contrastive/{first}/gain"])
    for path, weight, axes in [
        ("lm/embedding", lm["lm/embedding"], (1,)),
        ("lm/blocks/block/attention/out/w", lm["lm/blocks/block/attention/out/w"], (1, 2)),
        (f"{first}/w", w, (2,)),
    ]:
        expected = Int8Weight.of(weight, axes)
        made = trees.flatten(frozen)[f"flamingo/{path}"]
        np.testing.assert_array_equal(made.values, expected.values, err_msg=path)
        np.testing.assert_allclose(made.scale, expected.scale, rtol=1e-6, err_msg=path)
    assert "gain" not in frozen[f"flamingo/{first}"]


def test_grafted_blocks_go_on_with_a_language_model_of_their_kind(config, tmp_path):
    """With another activation their weights would load, and mean something else."""
    world = epath.Path(config.data.tokenizer).parent

    def described(stage, activation="gelu"):
        made = small.get_config(stage)
        made.model.xattn.grafted_layers, made.model.lm.activation = 1, activation
        return made

    initial = small.make_export(tmp_path / "flamingo", world, "flamingo", config_of=described)
    for activation in ("gelu", "relu"):
        of_lm = functools.partial(described, activation=activation)
        lm = small.make_export(tmp_path / activation, world, "language_model", config_of=of_lm)
        run = small.with_world(of_lm("flamingo"), world)
        run.update(initial=str(initial))
        run.towers.update(lm=str(lm), vision=None)
        read = from_dict(TrainConfig, run)
        read = read.resolved(resume.tokenizer_of(read).vocab_size)
        if activation == "gelu":
            towers.check_start(read)
        else:
            with pytest.raises(ConfigError, match=r"config.initial = .*config.model.lm(.|\n)*relu"):
                towers.check_start(read)


@pytest.mark.parametrize("stage", ["language_model", "contrastive"])
def test_a_stage_that_freezes_nothing_has_nothing_in_8_bits(stage):
    described = small.get_config(stage)
    described.precision.frozen = "int8"
    with pytest.raises(ConfigError, match=rf"precision.frozen is 'int8', and the {stage} stage"):
        from_dict(TrainConfig, described)


def test_a_vision_encoder_that_is_trained_is_in_float32(config):
    described = dataclasses.replace(config, unfrozen=("vision",)).resolved(small.VOCABULARY)
    layout = run_lib.compile(described, make_mesh(config.mesh, jax.devices()[:1])).layout
    rounded = lambda tree: {
        path.split("/")[1]
        for path, leaf in trees.flatten(tree).items()
        if isinstance(leaf, Int8Weight)
    }
    assert rounded(layout.abstract.frozen) == {"lm"}
    assert rounded(layout.abstract.trainable) == set()
    assert Policy("float32").frozen == TrainConfig.precision.frozen == "compute"
