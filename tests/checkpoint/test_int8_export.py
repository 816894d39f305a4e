"""Exports in 8 bits: the same bits when they are opened, half the size, and what refuses them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint import int8_export
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.checkpoint.export import describe_checkpoint, export, open_checkpoint
from flamingo_jax.checkpoint.verify import verify
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict, to_dict
from flamingo_jax.core.precision import Policy, is_int8
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.models import api, int8
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import towers
from flamingo_jax.training.config import TrainConfig
from tests.inference import tiny
from tests.training import small


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """(an export in bfloat16, the same in 8 bits) of a wide language model."""
    directory = tmp_path_factory.getbasetemp()
    words = tiny.tokenizer(directory)
    lm = dataclasses.replace(tiny.lm_config(words.vocab_size), width=64, mlp_width=256)
    model = api.language_model(lm)
    params = tiny.weights(jax.eval_shape(model.init, jax.random.key(0)))
    place = tmp_path_factory.mktemp("exports")
    source = export(
        place / "bfloat16",
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
        kind="language_model",
        config=to_dict(ModelConfig(lm=lm)),
        tokenizer=f"{directory}/tokenizer.model",
        preprocessing={},
        step=3,
    )
    return source, int8_export.write(source, place / "int8")


def test_it_has_the_same_bits_and_half_the_size(exports):
    source, target = exports
    opened, stored = open_checkpoint(target), open_checkpoint(source)
    contracted = int8.contracted_axes(
        api.language_model(from_dict(ModelConfig, opened.model_config).lm).init,
        Policy(frozen="int8"),
    )
    expected = int8.rounded(stored.params, contracted)
    flat, wanted = trees.flatten(opened.params), trees.flatten(expected)
    assert {path for path, leaf in flat.items() if is_int8(leaf)} == set(contracted)
    for path, leaf in wanted.items():
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.leaves(flat[path]), jax.tree.leaves(leaf)
        )
    card, before = read_card(target)[1], read_card(source)[1]
    assert card["int8"] is True and "int8" not in before
    assert card["parameters"] == before["parameters"]
    assert card["content_hash"] != before["content_hash"]
    assert [verdict.state for verdict in verify(target)] == ["ok"]
    size = lambda params: sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert 0.5 < size(opened.params) / size(stored.params) < 0.6
    described = trees.flatten(describe_checkpoint(target).params)
    assert {path: leaf.shape for path, leaf in described.items()} == {
        path: leaf.shape for path, leaf in flat.items()
    }


def test_it_is_loaded_as_it_is_on_one_device_and_on_a_mesh(exports):
    target = exports[1]
    flat = trees.flatten(open_checkpoint(target).params)
    for mesh in (None, make_mesh(MeshConfig(data=4, model=2))):
        model = Flamingo.load(target, config=tiny.CONFIG, mesh=mesh)
        for path, leaf in trees.flatten(model.engine.params).items():
            for found, expected in zip(
                jax.tree.leaves(leaf), jax.tree.leaves(flat[path]), strict=True
            ):
                np.testing.assert_array_equal(found, expected, err_msg=path)


def test_what_cannot_take_it_says_so(exports, tmp_path):
    source, target = exports
    with pytest.raises(CheckpointError, match="is in 8 bits already"):
        int8_export.write(target, tmp_path / "again")
    with pytest.raises(CheckpointError, match="exists already"):
        int8_export.write(source, target)
    described = small.get_config("flamingo")
    described.towers.lm = str(target)
    with pytest.raises(CheckpointError, match=r"towers.lm: .*int8 is in 8 bits, and a run rounds"):
        towers.frozen_records(from_dict(TrainConfig, described))
