"""Flamingo.load: what a checkpoint must be, and that nothing is read before that is known."""

import json

import jax
import pytest

from flamingo_jax.checkpoint import arrays, manifest
from flamingo_jax.checkpoint.export import describe_checkpoint, open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.model import CheckpointError, Flamingo, PromptError
from flamingo_jax.inference.request import Request
from tests.evaluation.test_programs import write_export
from tests.inference import tiny


@pytest.fixture
def exported(tmp_path_factory, tmp_path):
    return write_export(tmp_path / "export", "flamingo", tmp_path_factory.getbasetemp())


def change(exported, part, **fields):
    """Writes other fields into the model's config."""
    card = json.loads((exported / "model.json").read_text())
    card["config"][part].update(fields)
    (exported / "model.json").write_text(json.dumps(card))
    manifest.write(exported, manifest.entries(exported, manifest.files(exported)))


def refuse(*arguments):
    raise AssertionError("weights were read")


def test_a_description_reads_no_weight(exported, monkeypatch):
    opened = open_checkpoint(exported)
    monkeypatch.setattr(arrays, "read", refuse)
    described = describe_checkpoint(exported)
    assert (described.kind, described.step, described.tokenizer) == (
        "flamingo",
        7,
        opened.tokenizer,
    )
    shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in trees.flatten(opened.params).items()}
    assert {
        path: (leaf.shape, leaf.dtype) for path, leaf in trees.flatten(described.params).items()
    } == shapes
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(described.params))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("lm", {"width": 32}, r"holds \d+ arrays of other shapes than the model"),
        ("lm", {"tied_head": True}, r"Only in the checkpoint \(1\): flamingo/lm/head"),
        (
            "resampler",
            {"num_layers": 2},
            "arrays of other shapes than the model: flamingo/resampler",
        ),
        ("vision", {"depth": [2]}, "did you mean"),
    ],
)
def test_a_checkpoint_of_another_model(exported, monkeypatch, part, fields, message):
    """Weights and config do not belong together: said before a weight is read."""
    monkeypatch.setattr(arrays, "read", refuse)
    change(exported, part, **fields)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        Flamingo.load(exported)


def test_learned_positions_bound_prompt_and_answer_together(tmp_path_factory):
    """A table of positions ends: 6 tokens and 5 of the answer fit into 11, not into 10.

    Nothing is computed for a prompt that does not fit.
    """
    model = tiny.load(tmp_path_factory.getbasetemp(), context=10)
    with pytest.raises(
        PromptError,
        match="has 6 tokens and its answer up to 5; the language model has positions for 10 in all",
    ):
        model.generate("red red red red red")
    assert model.engine.sizes(
        [Request(model.read("red red red red"))], tiny.CONFIG, tiny.CONFIG.method
    ) == [(32, 4)]


def test_an_empty_prompt(tmp_path_factory):
    model = tiny.load(tmp_path_factory.getbasetemp())
    for prompt in ("", " \n", [], ["", " "]):
        with pytest.raises(PromptError, match="it is empty"):
            model.generate(prompt)
