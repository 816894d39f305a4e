"""Flamingo.stream: the text of `generate`, in pieces, by one program for all tokens."""

import dataclasses
import gc

import jax
import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference import compiled
from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
from flamingo_jax.inference.model import PromptError
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.inference import tiny
from tests.inference.test_model import PROMPTS

LONG = 12
GREEDY = Greedy(max_new_tokens=LONG)
DRAWN = Sample(temperature=1.5, top_p=0.9, seed=3, max_new_tokens=LONG)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("method", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_the_pieces_are_what_generate_returns(model, method):
    found = [list(model.stream(prompt, method=method)) for prompt in PROMPTS]
    assert ["".join(pieces) for pieces in found] == [
        model.generate([prompt], method=method)[0] for prompt in PROMPTS
    ]
    assert max(map(len, found)) > 3 and all(piece for pieces in found for piece in pieces)


def test_no_token_compiles_anything(model):
    for method in (GREEDY, DRAWN):
        "".join(model.stream(PROMPTS[0], method=method))
    before = compiled._run._cache_size(), compiled._run_in_place._cache_size()
    other = dataclasses.replace(DRAWN, seed=5, temperature=0.7, top_p=0.5)
    for prompt in PROMPTS[:3]:
        assert "".join(model.stream(prompt, method=GREEDY))
        assert "".join(model.stream(prompt, method=other)) is not None
    assert (compiled._run._cache_size(), compiled._run_in_place._cache_size()) == before


def test_a_closed_stream_keeps_no_array(model):
    "".join(model.stream(PROMPTS[0], method=GREEDY))  # what stays: weights, latents

    def sizes():
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    before = sizes()
    stream = model.stream(PROMPTS[0], method=GREEDY)
    assert next(stream)
    assert sizes() > before
    stream.close()
    assert sizes() == before


def test_answers_of_one_batch_have_their_own_methods_and_lengths(model):
    """Greedy and drawn answers side by side; one that is ended early disturbs no other."""
    methods = [GREEDY, DRAWN, Greedy(max_new_tokens=3), dataclasses.replace(DRAWN, seed=8)]
    prompts = PROMPTS[:4]
    stream = model.engine.stream([model.request(one) for one in prompts], methods, room=16)
    tokens = [[], [], [], []]
    while not stream.is_done:
        for row, new in enumerate(stream.advance(2)):
            tokens[row] += new
        stream.end(3)
    expected = [
        model.generate([one], method=method)[0]
        for one, method in zip(prompts, methods, strict=True)
    ]
    assert [model.tokenizer.decode(each) for each in tokens[:3]] == expected[:3]
    assert len(tokens[3]) <= 2 and expected[3].startswith(model.tokenizer.decode(tokens[3]))
    assert not stream.hit_stop[2] and stream.advance() == [(), (), (), ()]


@pytest.mark.slow
def test_eight_devices_stream_what_one_does(model, tmp_path_factory):
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2))
    split = tiny.load(tmp_path_factory.getbasetemp(), mesh=mesh)
    method = dataclasses.replace(DRAWN, max_new_tokens=4)
    assert "".join(split.stream(PROMPTS[0], method=method)) == "".join(
        model.stream(PROMPTS[0], method=method)
    )


def test_what_cannot_be_streamed_is_one_error_at_once(model):
    with pytest.raises(ConfigError, match="a search knows its answer only at the end"):
        model.stream(PROMPTS[0], method=BeamSearch(3))
    with pytest.raises(PromptError, match="stream: got 2 prompts; expected one"):
        model.stream(["red", "blue"])
    with pytest.raises(PromptError, match="prompt: it is empty"):
        model.stream("")
