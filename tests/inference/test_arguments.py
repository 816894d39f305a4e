"""Wrong arguments of `generate` and `score`: one error, before anything is compiled.

The type checks of the test set are off here, as for a user.
"""

import jaxtyping
import numpy as np
import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
from flamingo_jax.inference.prompt import Image, PromptError
from tests.inference import tiny

PROMPT = "output :"


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BeamSearch(2.5), "num_beams is 2.5; expected a whole number from 1"),
        (lambda: BeamSearch("3"), "num_beams is '3'"),
        (lambda: BeamSearch(num_beams=True), "num_beams is True"),
        (lambda: BeamSearch(length_penalty=float("nan")), "length_penalty is nan"),
        (lambda: BeamSearch(length_penalty="1"), "length_penalty is '1'"),
        (lambda: BeamSearch(ends="all"), "ends is 'all'"),
        (lambda: Greedy(None), "max_new_tokens is None"),
        (lambda: Greedy(1e3), "max_new_tokens is 1000.0"),
        (lambda: Sample(seed="a"), "Sample.seed is 'a'; expected a whole number"),
        (lambda: Sample(seed=0.5), "Sample.seed is 0.5"),
        (lambda: Sample(temperature="hot"), "Sample.temperature is 'hot'"),
        (lambda: Sample(temperature=float("inf")), "Sample.temperature is inf"),
        (lambda: Sample(top_p=float("nan")), "Sample.top_p is nan"),
    ],
)
def test_settings_of_another_kind(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_numbers_of_numpy_are_numbers():
    assert BeamSearch(np.int32(3)).num_beams == 3
    assert Sample(temperature=np.float32(0.5), seed=np.int64(3)).seed == 3


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("greedy", "method: got 'greedy'; expected a method with its settings"),
        (Greedy, r"method: got the class Greedy; expected .* Greedy\(\)"),
        (3, "method: got 3"),
        (Greedy(10**6), "Greedy.max_new_tokens is 1,000,000; expected at most 2,048"),
    ],
)
def test_wrong_methods(model, method, message):
    with pytest.raises(ConfigError, match=message):
        model.generate(PROMPT, method=method)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", None])
def test_wrong_batch_sizes(model, batch_size):
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size!r}; expected"):
        model.generate(PROMPT, batch_size=batch_size)
    with pytest.raises(ConfigError, match=f"batch_size is {batch_size!r}; expected"):
        model.score(PROMPT, [" red"], batch_size=batch_size)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (Image("cat.png"), "got Image; expected a str, or a list"),
        (b"bytes", "got bytes; expected a str, or a list"),
        (tiny.image(0), "got ndarray; expected a str, or a list"),
        (None, "got NoneType; expected a str, or a list"),
        ({"text": PROMPT}, "got dict; expected a str, or a list"),
        ([PROMPT, None], "part 1 is NoneType; expected str, Image"),
    ],
)
def test_wrong_prompts(model, prompts, message):
    with pytest.raises(PromptError, match=message):
        model.generate(prompts)
    with pytest.raises(PromptError, match=message):
        model.score(prompts, [" red"])


@pytest.mark.parametrize("normalise", ["avg", "", 1, "Mean"])
def test_unknown_normalisations(model, normalise):
    with pytest.raises(ConfigError, match=f"normalise is {normalise!r}; expected 'sum', 'mean'"):
        model.score(PROMPT, [" red"], normalise=normalise)


def test_one_candidate_is_a_list_of_one(model):
    with pytest.raises(PromptError, match="candidates: got str 'red'; expected a list of str"):
        model.score(PROMPT, "red")
    with pytest.raises(PromptError, match="candidate 1 is empty"):
        model.score(PROMPT, ["red", ""])


def test_settings_in_the_wrong_place(model):
    with pytest.raises(TypeError, match=r"got beams=3, seed=1; .*method=BeamSearch\(3"):
        model.generate(PROMPT, beams=3, seed=1)
    with pytest.raises(TypeError, match="score: got normalize='mean'; expected .*normalise"):
        model.score(PROMPT, [" red"], normalize="mean")
