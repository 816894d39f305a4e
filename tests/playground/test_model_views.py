"""What the page shows of a model: bars of candidates, gates, and the image of each token."""

import itertools
import math
import re

import pytest

from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
from flamingo_jax.inference.prompt import PromptError
from flamingo_jax.playground import model_views, prompt_page
from tests.inference import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


def texts(html):
    """Returns the texts between the tags."""
    return [text.strip() for text in re.findall(r">([^<]+)<", html) if text.strip()]


def test_candidates_are_ordered_and_their_shares_are_of_the_whole():
    shown = texts(model_views.candidates(["red", "<b>"], [math.log(0.1), math.log(0.3)]))
    assert shown == [
        *("&lt;b&gt;", "75.0% · log-likelihood -1.20", "red", "25.0% · log-likelihood -2.30")
    ]


def test_gates_are_tanh_of_each_layer(model):
    assert model_views.gate_values(model.engine.params) == {
        "attention": pytest.approx([math.tanh(0.8)] * 2),
        "dense": pytest.approx([math.tanh(0.1)] * 2),
    }
    shown = texts(model_views.gates(model.engine.params))
    assert shown[1:6] == ["Layer 1", "attention", "+0.664", "dense", "+0.100"]
    assert "no gates" in model_views.gates({})


def test_each_token_has_the_colour_of_its_image(model):
    prompt = ["this", tiny.image(0), "output : red", tiny.image(1), "output :"]
    shown = prompt_page.attended(model, prompt, "green circle")
    tokens = re.findall(r'<span class="fj-c(\d)( fj-answer)?">([^<]*)</span>', shown)
    assert [(int(colour), piece) for colour, _, piece in tokens] == [
        *((0, "&lt;BOS&gt;"), (0, "this"), (0, "&lt;EOC&gt;"), (1, "&lt;image&gt;")),
        *((1, "output"), (1, ":"), (1, "red"), (1, "&lt;EOC&gt;"), (2, "&lt;image&gt;")),
        *((2, "output"), (2, ":"), (2, "green"), (2, "circle")),
    ]
    assert [piece for _, is_answer, piece in tokens if is_answer] == ["green", "circle"]
    assert shown.count("data:image/png;base64,") == 2 and "1 · 5 tokens" in shown
    assert "and no other" in shown


def test_settings_become_a_method():
    assert prompt_page.method_of("Greedy", 3.0, 1.0, 0.9, 0.0, 5.0) == Greedy(5)
    assert prompt_page.method_of("Beam search", 4.0, 1.0, 0.9, 0.0, 5.0) == BeamSearch(
        4, max_new_tokens=5
    )
    assert prompt_page.method_of("Sampling", 3.0, 0.5, 0.9, 7.0, 5.0) == Sample(
        0.5, 0.9, 7, max_new_tokens=5
    )
    with pytest.raises(ValueError, match="temperature"):
        prompt_page.method_of("Sampling", 3.0, 0.0, 0.9, 7.0, 5.0)
    # A field that was emptied matters where it is used.
    assert prompt_page.method_of("Greedy", None, None, None, None, 5.0) == Greedy(5)
    names = ("Beams", "Temperature", "Top p", "Seed", "Most new tokens")
    for number, name in enumerate(names):
        settings = [3.0, 0.5, 0.9, 7.0, 5.0]
        settings[number] = None
        with pytest.raises(ValueError, match=f"{name} is empty: give a number"):
            prompt_page.method_of("Sampling" if number else "Beam search", *settings)


def test_an_answer_appears_token_by_token(model):
    prompt = [tiny.image(0), "output : red", tiny.image(1), "output :"]
    shown = list(prompt_page.pieces(model, prompt, Greedy(5)))
    assert len(shown) > 1 and shown[-1] == model.generate(prompt, method=Greedy(5)).strip()
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))


def test_candidates_are_read_by_line(model):
    with pytest.raises(PromptError, match="nothing to compare"):
        prompt_page.scored(model, ["this is a"], " \n")
