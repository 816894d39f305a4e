"""Hateful Memes: its own prompt, yes and no."""

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.hateful_memes import HATEFUL_MEMES
from flamingo_jax.inference.prompt import Image
from tests.evaluation.fixtures.hateful_memes import make_hateful_memes


@pytest.fixture
def directory(tmp_path):
    make_hateful_memes(epath.Path(tmp_path))
    return epath.Path(tmp_path)


def test_prompt_and_answers(directory):
    train, test = HATEFUL_MEMES.at(directory).train(), HATEFUL_MEMES.at(directory).test()
    assert train[0].prefix == (
        'is an image with written: "its their character not their color that matters" on it. Is it '
        "hateful? Answer:"
    )
    assert (
        test[1].prefix
        == 'is an image with written: "introducing fidget spinner" on it. Is it hateful? Answer:'
    )
    assert [item.answer for item in train] == ["no", "no", "yes", "yes"]
    assert [item.answer for item in test] == ["yes", "no", "yes"]
    assert all(
        item.candidates == ("yes", "no") and item.extra == {"positive": "yes"} for item in test
    )
    assert (test[0].id, test[0].visual) == ("16395", Image(f"{directory}/img/16395.png"))


def test_files_of_another_split_are_an_error(directory):
    test = directory / "test_seen.jsonl"
    hidden = test.read_text().replace('"label": 1, ', "")
    test.write_text((directory / "train.jsonl").read_text())
    with pytest.raises(
        AnnotationError,
        match=r"test_seen.jsonl holds 4 memes that are in train.jsonl too \(meme 42953\)",
    ):
        HATEFUL_MEMES.at(directory).test()
    test.write_text(hidden)
    with pytest.raises(
        AnnotationError,
        match="record 0 should have 'label' .int., got only id, img, text.*of another split",
    ):
        HATEFUL_MEMES.at(directory).test()
    test.write_text('{"id": 1, "img": "img/16395.png", "label": 2, "text": ""}')
    with pytest.raises(AnnotationError, match="holds the label 2, expected 0 or 1"):
        HATEFUL_MEMES.at(directory).test()
