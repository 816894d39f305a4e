"""Each benchmark's declaration is complete, and the evaluation's README names it."""

import pathlib

import pytest

from flamingo_jax.evaluation.registry import BENCHMARKS

README = pathlib.Path(__file__).parents[3] / "flamingo_jax" / "evaluation" / "README.md"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_declaration_is_complete(name):
    benchmark = BENCHMARKS[name]
    assert benchmark.download and benchmark.queries
    assert benchmark.published or not benchmark.is_of_paper
    for split, places in benchmark.files.items():
        official = places[0].rpartition("/")[2]
        assert official in benchmark.layout, f"the layout lacks the annotation file of {split}"
    for folder in benchmark.folders[:1]:
        assert f"{folder}/" in benchmark.layout
    assert f"`{name}`" in README.read_text()
