"""A model with a weight that is NaN or infinite gives an error that names it, and no answer."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.inference.compiled import Compiled
from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
from flamingo_jax.inference.model import EXPECTED_ERRORS
from flamingo_jax.inference.nearest import Rices, nearest
from flamingo_jax.inference.vision_features import VisionEncoder
from tests.inference import tiny

# Shapes and methods of test_model: no program is compiled for these tests alone.
PROMPT = [tiny.image(2), "this is a"]
LENGTH = tiny.CONFIG.max_new_tokens
METHODS = {
    "greedy": ([PROMPT], Greedy(LENGTH)),
    "beams": ([PROMPT] * 5, BeamSearch(3, max_new_tokens=LENGTH)),
    "sample": ([PROMPT] * 4, Sample(max_new_tokens=LENGTH)),
}
CANDIDATES = ["red", "blue circle", "a big green square"]
PLACES = {
    "text tower": "flamingo/lm/blocks/block/mlp/down/w",
    "final norm": "flamingo/lm/final_norm/scale",
    "gate": "flamingo/xattn/block/attention_gate",
    "resampler": "flamingo/resampler/layers/value/w",
    "image tower": "flamingo/vision/stage0/first/conv1/w",
}


@pytest.fixture
def broken(tmp_path_factory):
    """Returns a function: (weight, value, whether the whole weight has it) -> the tiny model."""

    def load(path, value, *, whole=True):
        model = tiny.load(tmp_path_factory.getbasetemp())
        flat = trees.flatten(model.engine.params)
        weight = np.array(flat[path])
        weight[...] = value if whole else weight
        weight.flat[0] = value
        model.engine.compiled.params = trees.unflatten({**flat, path: jnp.asarray(weight)})
        return model

    return load


@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "one number"])
@pytest.mark.parametrize("place", PLACES)
def test_nan_anywhere_is_one_error_that_names_the_weight(broken, place, whole):
    model = broken(PLACES[place], np.nan, whole=whole)
    told = rf"of the model tiny are not finite: .*{re.escape(PLACES[place])}\. Take an earlier"
    for prompts, method in METHODS.values():
        with pytest.raises(NonFiniteError, match=told):
            model.generate(prompts, method=method)
    with pytest.raises(NonFiniteError, match=told):
        model.score(PROMPT, CANDIDATES)
    with pytest.raises(NonFiniteError, match="Weights of the model tiny are not finite"):
        model.engine.compiled.check_weights()
    assert NonFiniteError in EXPECTED_ERRORS  # the programs print it as one line


@pytest.mark.parametrize("place", ["text tower", "final norm", "image tower"])
def test_infinity_is_as_bad_as_nan(broken, place):
    model = broken(PLACES[place], np.inf)
    prompts, method = METHODS["beams"]
    with pytest.raises(NonFiniteError):
        model.generate(prompts, method=method)
    with pytest.raises(NonFiniteError):
        model.score(PROMPT, CANDIDATES)


def test_an_infinite_gate_gives_finite_numbers_but_a_long_evaluation_refuses_it(broken):
    """The tanh of infinity is 1."""
    model = broken(PLACES["gate"], np.inf)
    assert np.isfinite(model.score(PROMPT, CANDIDATES)).all()
    with pytest.raises(NonFiniteError, match="attention_gate"):
        model.engine.compiled.check_weights()


def test_a_number_that_overflows_is_told_from_a_broken_weight(broken):
    model = broken(PLACES["final norm"], 3e38)
    with pytest.raises(NonFiniteError, match="All weights are finite, so a number became too"):
        model.score(PROMPT, CANDIDATES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_for_similar_images_are_finite(broken, value):
    encoder = VisionEncoder.of(broken(PLACES["image tower"], value))
    with pytest.raises(NonFiniteError, match="Features of images of the model tiny"):
        Rices(encoder).features([tiny.image(0), tiny.image(1)])
    with pytest.raises(NonFiniteError, match=re.escape(PLACES["image tower"])):
        encoder.check_weights()


@pytest.mark.parametrize("side", [0, 1])
def test_nothing_is_near_to_nan(side):
    both = [np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)]
    both[side][1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="Features of (queries|support examples)"):
        nearest(*both, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_weight_of_many_is_found(dtype, bad):
    """In arrays of every size: compilers treat the NaN of large ones in another way."""
    large, small = jnp.ones((128, 96), dtype), jnp.ones((), dtype)
    params = {"m": {"a": large, "b": small, "c": large.at[77, 5].set(bad), "d": small * bad}}
    with pytest.raises(NonFiniteError, match=r"Weights of the model x are not finite: m/c, m/d\."):
        Compiled(params, None, name="x").check_weights()
    params["m"] = {name: jnp.full_like(leaf, -3e38) for name, leaf in params["m"].items()}
    Compiled(params, None).check_weights()
