"""GQA: questions by id with their types, and the two official metrics."""

import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.later.gqa import GQA
from flamingo_jax.evaluation.metrics import metric
from flamingo_jax.evaluation.runner import of_groups
from flamingo_jax.inference.prompt import Image
from tests.evaluation.answers import answered
from tests.evaluation.fixtures.gqa import make_gqa


@pytest.fixture
def directory(tmp_path):
    make_gqa(epath.Path(tmp_path))
    return tmp_path


def test_questions_have_their_types(directory):
    train, test = GQA.at(directory).train(), GQA.at(directory).test()
    assert (len(train), len(test)) == (5, 4)
    assert train[0].prefix == "Question: Is the square small? Answer:"
    assert train[1].shown == train[2].shown != train[3].shown
    assert test[1].id == "201640614"
    assert test[1].visual == Image(f"{directory}/images/n235859.jpg")
    assert test[1].extra == {
        "groups": ["open", "structure: query", "meaning: rel"],
        "kind": "person",
    }


def test_accuracy_of_binary_and_open_questions(directory):
    texts = ("No.", "  wug", "wug", "green")
    answers = [
        answered(item.id, item.answer, text, extra=item.extra)
        for item, text in zip(GQA.at(directory).test(), texts, strict=True)
    ]
    assert metric("gqa_accuracy").value(answers) == 0.5
    groups = of_groups(metric("gqa_accuracy"), answers)
    assert groups == {
        "binary": 0.5,  # no is right, blue is not
        "open": 0.5,  # wug is right, dax is not
        "structure: verify": 1.0,
        "structure: query": 0.5,
        "structure: choose": 0.0,
        "meaning: attr": 0.5,
        "meaning: rel": 1.0,
        "meaning: obj": 0.0,
    }
    # The group person has the answers wug, dax: wug is given twice, dax never:
    # (2 - 1)^2 / 1 + (0 - 1)^2 / 1 = 2. The group color has blue, given never: (0 - 1)^2 / 1 = 1.
    # By size: (2 * 2 + 1 * 1) / 3, and / 100. The first question has no group.
    assert metric("gqa_distribution").value(answers) == pytest.approx(5 / 3 / 100)


def test_right_answers_have_the_right_distribution(directory):
    answers = [
        answered(item.id, item.answer, item.answer, extra=item.extra)
        for item in GQA.at(directory).test()
    ]
    assert metric("gqa_distribution").value(answers) == 0
    assert metric("gqa_distribution").value(answers[:1]) == 0  # it has no group


@pytest.mark.parametrize("value", [[], {}, {"1": {"question": "What?"}}])
def test_another_file_is_named(directory, value):
    (directory / "testdev_balanced_questions.json").write_text(json.dumps(value))
    with pytest.raises(AnnotationError, match="testdev_balanced_questions.json"):
        GQA.at(directory).test()


def test_a_question_without_types_is_named(directory):
    file = directory / "testdev_balanced_questions.json"
    file.write_text(file.read_text().replace('"structural": "query"', '"structural": null'))
    with pytest.raises(AnnotationError, match="the types .* of question 201640614"):
        GQA.at(directory).test()
