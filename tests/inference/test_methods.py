"""Methods of decoding: the settings that they refuse, and how config and command line name them."""

import dataclasses

import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample, from_settings


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Greedy(0), "Greedy.max_new_tokens is 0; expected a whole number from 1"),
        (lambda: BeamSearch(0), "BeamSearch.num_beams is 0; expected a whole number from 1"),
        (lambda: BeamSearch(max_new_tokens=0), "BeamSearch.max_new_tokens is 0"),
        (
            lambda: BeamSearch(length_penalty=-0.5),
            "BeamSearch.length_penalty is -0.5; expected a number from 0",
        ),
        (lambda: Sample(temperature=0.0), r"Sample.temperature is 0.0; .* use Greedy\(\)"),
        (
            lambda: Sample(top_p=0.0),
            "Sample.top_p is 0.0; expected a number above 0 and at most 1",
        ),
        (lambda: Sample(top_p=1.5), "Sample.top_p is 1.5"),
        (lambda: Sample(max_new_tokens=0), "Sample.max_new_tokens is 0"),
    ],
)
def test_settings_out_of_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_config_names_a_method():
    """Each field of the command line arrives, and none that belongs to another method."""
    config = InferenceConfig(
        beams=5,
        length_penalty=0.5,
        beam_ends="best",
        temperature=2.0,
        top_p=0.9,
        seed=7,
        max_new_tokens=11,
    )
    named = {
        way: dataclasses.replace(config, decoding=way).method
        for way in ("greedy", "beam", "sample")
    }
    assert named == {
        "greedy": Greedy(11),
        "beam": BeamSearch(5, 0.5, "best", 11),
        "sample": Sample(temperature=2.0, top_p=0.9, seed=7, max_new_tokens=11),
    }
    assert InferenceConfig().method == Greedy()
    assert InferenceConfig(decoding="beam").method == BeamSearch()
    assert InferenceConfig(decoding="sample").method == Sample()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beams": 0}, "beams is 0; expected a whole number from 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5; expected"),
        ({"lengths": (8, 4)}, r"lengths is \(8, 4\); expected ascending sizes"),
        ({"video_frames": 0}, "video_frames is 0; expected a whole number from 1"),
    ],
)
def test_a_config_out_of_range(fields, message):
    """Also the settings of methods that `decoding` does not name."""
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**fields)


def test_the_command_line_names_a_method():
    default = BeamSearch(3, max_new_tokens=64)
    assert from_settings(default) == from_settings(default, seed=4) == default
    assert from_settings(default, max_new_tokens=5) == BeamSearch(3, max_new_tokens=5)
    assert from_settings(default, beams=1) == Greedy(64)
    assert from_settings(default, beams=4) == BeamSearch(4, max_new_tokens=64)
    assert from_settings(default, top_p=0.9, seed=4) == Sample(top_p=0.9, seed=4, max_new_tokens=64)
    assert from_settings(Greedy(), temperature=0.5) == Sample(temperature=0.5)
    with pytest.raises(
        ConfigError, match=r"Got beams=3 with top_p=0.9, temperature=None: search or draw, not both"
    ):
        from_settings(default, beams=3, top_p=0.9)
