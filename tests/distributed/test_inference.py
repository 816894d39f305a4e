"""Answers of a model with weights split over "model" equal those of one device.

The weights are loaded part by part.
"""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.export import export
from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, to_dict
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.models import api
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.inference import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, decoding="beam", max_new_tokens=4)
PROMPTS = [
    [tiny.image(0), "output : red<EOC>", tiny.image(1), "output :"],
    [tiny.image(2), "this is a"],
    ["question : red circle answer :"],
]
# Weights that every device has whole: with neither heads, nor hidden units, nor a vocabulary, or of
# what is spread by images.
WHOLE = r"flamingo/(vision|resampler|media|new_tokens)/|.*(_norm/|norm/|_gate$|mlp/down/b$)"
CANDIDATES = ["red", "a big green square"]


def parts(vocabulary):
    """Returns a Flamingo like the 80B: relative positions, cross-attention every second block."""
    base = tiny.flamingo_config(vocabulary)
    lm = LMConfig(
        vocabulary, num_layers=2, width=16, num_heads=4, tied_head=False, vocab_multiple=8
    )
    return dataclasses.replace(base, lm=lm, xattn=XattnConfig(every=2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The directory of a model with random weights."""
    directory = tmp_path_factory.getbasetemp()
    config = parts(tiny.tokenizer(directory).vocab_size)
    described = ModelConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    )
    params = tiny.weights(jax.eval_shape(api.flamingo(config).init, jax.random.key(0)))
    return export(
        directory / "four_heads",
        params,
        kind="flamingo",
        config=to_dict(described),
        tokenizer=f"{directory}/tokenizer.model",
        preprocessing={"image_size": tiny.IMAGE_SIZE},
        step=3,
    )


def answers(model):
    requests = [model.request(prompt, CANDIDATES) for prompt in PROMPTS]
    return model.engine.answer(requests)


@pytest.fixture(scope="module")
def alone(exported):
    """Answers of one device."""
    return answers(Flamingo.load(exported, config=CONFIG))


def test_weights_split_over_model_give_the_same_answers(exported, alone, monkeypatch):
    """Tokens of the beam search are equal, log-likelihoods (about 10) within 1e-4.

    1e-4: float32 sums in another order.
    """
    mesh = make_mesh(MeshConfig(data=2, model=4))
    asked = {}
    read = arrays.read
    monkeypatch.setattr(
        arrays, "read", lambda directory, like: asked.update(like) or read(directory, like)
    )
    model = Flamingo.load(exported, config=CONFIG, mesh=mesh)
    split = {
        path for path, leaf in asked.items() if leaf.sharding.shard_shape(leaf.shape) != leaf.shape
    }
    assert split == {path for path in asked if not re.match(WHOLE, path)}
    # The weights are still on the devices that they were read to.
    for path, leaf in trees.flatten(model.engine.params).items():
        assert leaf.sharding == asked[path].sharding
        assert leaf.addressable_shards[0].data.size == leaf.size // (4 if path in split else 1)
    found = answers(model)
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    assert len({one.tokens for one in alone}) == len(PROMPTS)
    np.testing.assert_allclose(
        [[one.log_likelihood, *one.scores] for one in found],
        [[one.log_likelihood, *one.scores] for one in alone],
        atol=1e-4,
    )


def test_a_model_axis_that_does_not_divide_the_heads_is_said_to_be_so(exported):
    mesh = make_mesh(MeshConfig(model=8))
    with pytest.raises(
        ConfigError, match=r"has 4 of 'heads' in shape .* which mesh axis model = 8 does not divide"
    ):
        Flamingo.load(exported, config=CONFIG, mesh=mesh)


def test_towers_in_8_bits_are_rounded_on_the_mesh_as_on_one_device(exported, alone, monkeypatch):
    """Read in several chunks; the answers are those of one device, and the model's own."""
    config = dataclasses.replace(CONFIG, frozen="int8")
    reads, read = [], arrays.read
    monkeypatch.setattr(
        arrays, "read", lambda directory, like: reads.append(like) or read(directory, like)
    )
    monkeypatch.setattr(arrays, "chunks", functools.partial(arrays.chunks, num_bytes=2**13))
    mesh = make_mesh(MeshConfig(data=2, model=4))
    one, split = (Flamingo.load(exported, config=config, mesh=m) for m in (None, mesh))
    assert len(reads) > 4
    jax.tree.map(np.testing.assert_array_equal, one.engine.params, split.engine.params)
    up = split.engine.params["flamingo/lm/blocks/block/mlp/up"]["w"]
    assert up.values.dtype == np.int8 and up.values.sharding.spec[-1] == "model"
    assert up.scale.sharding.spec[-1] == "model"
    found, of_one = answers(split), answers(one)
    assert [each.tokens for each in found] == [each.tokens for each in of_one]
    scores = lambda answers: np.asarray([[one.log_likelihood, *one.scores] for one in answers])
    np.testing.assert_allclose(scores(found), scores(of_one), atol=1e-4)
    np.testing.assert_allclose(scores(found), scores(alone), rtol=0.1)
