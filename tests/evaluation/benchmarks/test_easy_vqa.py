"""easy-VQA: questions from the files of its package."""

import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.easy_vqa import EASY_VQA
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.evaluation.registry import BENCHMARKS, PAPER_BENCHMARKS
from flamingo_jax.inference.prompt import Image
from tests.evaluation.fixtures.easy_vqa import make_easy_vqa


@pytest.mark.parametrize("below", ["", "data", "easy_vqa/data"])
def test_questions_of_the_package(tmp_path, below):
    place = epath.Path(tmp_path) / below
    make_easy_vqa(place)
    train, test = EASY_VQA.at(tmp_path).train(), EASY_VQA.at(tmp_path).test()
    assert (len(train), len(test)) == (5, 3)
    assert train[1].id == "train/0/is there a circle?"
    assert train[1].prefix == "Question: is there a circle? Answer:"
    assert (train[1].answer, train[1].references) == ("no", ("no",))
    assert train[1].visual == Image(f"{place}/train/images/0.png")
    assert train[0].shown == train[1].shown != train[2].shown
    assert test[0].shown != train[0].shown  # both are picture 0 of their split


@pytest.mark.parametrize("value", [{}, [], [["what?", "red"]], [["what?", "red", "0"]]])
def test_another_file_is_named(tmp_path, value):
    make_easy_vqa(epath.Path(tmp_path))
    (tmp_path / "test" / "questions.json").write_text(json.dumps(value))
    with pytest.raises(AnnotationError, match="list of .question, answer, number"):
        EASY_VQA.at(tmp_path).test()


def test_it_has_a_directory_and_is_not_of_the_paper():
    assert "easy_vqa" in DIRECTORIES and "easy_vqa" in BENCHMARKS
    assert "easy_vqa" not in PAPER_BENCHMARKS
