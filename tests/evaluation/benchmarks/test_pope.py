"""POPE: three files of questions, and how its script reads and counts answers."""

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.later.pope import POPE
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.metrics import metric
from flamingo_jax.evaluation.metrics.yes_or_no import is_yes
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import of_groups
from flamingo_jax.inference.prompt import Image
from tests.evaluation.answers import answered
from tests.evaluation.fixtures.pope import make_pope


@pytest.fixture
def directory(tmp_path):
    make_pope(epath.Path(tmp_path))
    return tmp_path


def test_questions_of_three_files(directory):
    items = POPE.at(directory).test()
    assert len(items) == len({item.id for item in items}) == 12
    assert (items[5].id, items[5].answer) == ("popular/2", "no")
    assert items[5].visual == Image(f"{directory}/val2014/COCO_val2014_000000310196.jpg")
    assert items[5].prefix == "Question: Is there a person in the image? Answer:"
    assert POPE.at(directory).train() == ()


def test_it_is_asked_without_examples(directory):
    """Open-ended benchmarks have two examples of text at 0 shots, and here are none to draw."""
    task = FewShotTask(POPE.at(directory), Protocol(n=0))
    assert {episode.support_ids for episode in task.episodes(0)} == {()}
    assert task.setting(0)["num_text_examples"] == 0
    assert not task.accepts(4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", True),
        ("Yes, there is a dax.", True),
        ("No, there is no dax.", False),
        ("There is not. Yes.", False),
        ("There is. No doubt.", True),  # after the first full stop nothing counts
        ("no,", False),
        ("NO", True),  # the script looks for No, no and not alone
        ("nothing", True),
        ("", True),
    ],
)
def test_how_an_answer_is_read(text, expected):
    assert is_yes(text) == expected


def test_values_by_hand(directory):
    """Random: one of each kind of answer. Popular: all yes. Adversarial: all right."""
    texts = ("yes", "yes", "no", "no") + ("yes",) * 4 + ("yes", "no", "yes", "no")
    answers = [
        answered(item.id, item.answer, text, extra=item.extra)
        for item, text in zip(POPE.at(directory).test(), texts, strict=True)
    ]
    # Of all: 5 true and 3 false yes, 3 true and 1 false no.
    values = {
        "pope_accuracy": (8 / 12, {"random": 2 / 4, "popular": 2 / 4, "adversarial": 1}),
        "pope_precision": (5 / 8, {"random": 1 / 2, "popular": 2 / 4, "adversarial": 1}),
        "pope_recall": (5 / 6, {"random": 1 / 2, "popular": 1, "adversarial": 1}),
        "pope_f1": (10 / 14, {"random": 1 / 2, "popular": 2 / 3, "adversarial": 1}),
        "pope_yes": (8 / 12, {"random": 2 / 4, "popular": 1, "adversarial": 2 / 4}),
    }
    for name, (value, groups) in values.items():
        assert metric(name).value(answers) == pytest.approx(value)
        assert of_groups(metric(name), answers) == pytest.approx(groups)


def test_without_a_yes_nothing_is_divided_by_zero(directory):
    answers = [answered("a", "yes", "no"), answered("b", "no", "no")]
    for name in ("pope_precision", "pope_recall", "pope_f1", "pope_yes"):
        assert metric(name).value(answers) == 0


def test_another_label_is_named(directory):
    file = directory / "coco_pope_popular.json"
    file.write_text(file.read_text().replace('"label": "no"', '"label": "maybe"'))
    with pytest.raises(AnnotationError, match="coco_pope_popular.json holds the label 'maybe'"):
        POPE.at(directory).test()


def test_a_question_that_is_there_twice_is_an_error(directory):
    file = directory / "coco_pope_random.json"
    file.write_text(file.read_text() + file.read_text().splitlines()[0])
    with pytest.raises(AnnotationError, match="holds the id 1 2 times"):
        POPE.at(directory).test()
