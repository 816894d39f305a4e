"""ScienceQA, MMBench and SEED-Image: options, their official groups, and circular evaluation."""

import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.later.mmbench import MMBENCH
from flamingo_jax.evaluation.benchmarks.later.scienceqa import SCIENCEQA, SCIENCEQA_IMG
from flamingo_jax.evaluation.benchmarks.later.seed_image import SEED_IMAGE
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.metrics import metric
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import of_groups
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.inference.prompt import Image
from tests.evaluation.answers import answered
from tests.evaluation.fixtures import mmbench, pictures
from tests.evaluation.fixtures.scienceqa import make_scienceqa
from tests.evaluation.fixtures.seed_image import make_seed_image


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def choose(items, chosen):
    """Returns answers that rank the chosen candidates first."""
    return [
        answered(
            item.id,
            item.answer,
            candidates=item.candidates,
            scores=tuple(float(each == first) for each in item.candidates),
            extra=item.extra,
        )
        for item, first in zip(items, chosen, strict=True)
    ]


def test_scienceqa_lists_options_and_ranks_letters(directory):
    make_scienceqa(directory)
    train, test = SCIENCEQA.at(directory).train(), SCIENCEQA.at(directory).test()
    assert [item.id for item in train] == ["1", "2", "3", "6"]
    assert [item.id for item in test] == ["5", "11", "16", "20"]
    assert test[0].prefix == (
        "Question: Which is blue? Context: A dax. Options: (A) a (B) b (C) c Answer:"
    )
    assert (test[0].candidates, test[0].answer) == (("A", "B", "C"), "B")
    assert test[0].visual == Image(f"{directory}/test/5/image.png")
    assert test[1].prefix == "Question: Is it a dax? Options: (A) yes (B) no Answer:"
    assert test[1].visual is None


def test_scienceqa_has_the_official_groups(directory):
    make_scienceqa(directory)
    # Right: 5 and 20. Wrong: 11 and 16.
    answers = choose(SCIENCEQA.at(directory).test(), ("B", "A", "B", "A"))
    assert metric("ranking").value(answers) == 0.5
    assert of_groups(metric("ranking"), answers) == {
        "NAT": 1.0,  # 5, 20
        "SOC": 0.0,  # 16
        "LAN": 0.0,  # 11
        "TXT": 1.0,  # 5, 20
        "IMG": 2 / 3,  # 5, 16, 20
        "NO": 0.0,  # 11
        "G1-6": 1.0,  # 5, 20
        "G7-12": 0.0,  # 11, 16
    }


def test_scienceqa_img_is_the_part_with_pictures(directory):
    make_scienceqa(directory)
    benchmark = SCIENCEQA_IMG.at(directory)
    assert [item.id for item in benchmark.test()] == ["5", "16", "20"]
    assert [item.id for item in benchmark.train()] == ["1", "3", "6"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"answer": 1, "hint": "A', '"answer": 3, "hint": "A', "the answer 3 of problem 5"),
        ('"grade": "grade12"', '"grade": "12"', "and grade '12' of problem 16"),
        ('"subject": "social science"', '"subject": "art"', "the subject 'art'"),
        ('"split": "test"', '"split": "val"', "no problems of test"),
    ],
)
def test_another_file_of_scienceqa_is_named(directory, old, new, message):
    make_scienceqa(directory)
    file = directory / "problems.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(AnnotationError, match=message):
        SCIENCEQA.at(directory).test()


def test_mmbench_reads_rotations_and_pictures(directory):
    mmbench.make_mmbench(directory)
    items = MMBENCH.at(directory).test()
    assert len(items) == 3 + 2 + 4
    assert [item.id for item in items[:3]] == ["241", "1000241", "2000241"]
    assert [item.answer for item in items[:3]] == ["B", "A", "C"]
    assert items[1].prefix == (
        "Question: Which is red? Options: (A) wug (B) square (C) dax Answer:"
    )
    assert items[3].prefix == (
        'Question: Is it a dax? Context: A "dax" is small. Options: (A) yes (B) no Answer:'
    )
    assert items[1].visual.read() == pictures.encoded(0)  # by the index of its question
    assert items[8].visual.read() == pictures.encoded(2)
    assert items[0].shown == items[2].shown != items[3].shown
    assert items[8].extra == {"question": "253", "groups": ["ability: object", "level 2: coarse"]}
    assert MMBENCH.at(directory).train() == ()


def test_mmbench_counts_a_question_if_all_rotations_are_right(directory):
    mmbench.make_mmbench(directory)
    items = MMBENCH.at(directory).test()
    chosen = [item.answer for item in items]
    chosen[2] = "A"  # one of three rotations of 241
    answers = choose(items, chosen)
    assert metric("circular_accuracy").value(answers) == 2 / 3
    assert metric("circular_accuracy").value(answers[::-1]) == 2 / 3
    assert metric("ranking").value(answers) == 8 / 9
    assert of_groups(metric("circular_accuracy"), answers) == {
        "ability: color": 0.0,
        "ability: identity": 1.0,
        "ability: object": 1.0,
        "level 2: attribute": 0.5,
        "level 2: coarse": 1.0,
    }
    # A model that always says A is right once in each question.
    assert metric("circular_accuracy").value(choose(items, "A" * 9)) == 0


def test_mmbench_is_asked_as_a_whole(directory):
    mmbench.make_mmbench(directory)
    with pytest.raises(TaskError, match="'mmbench' judges several queries together.*n=0"):
        FewShotTask(MMBENCH.at(directory), Protocol(n=3))
    assert len(FewShotTask(MMBENCH.at(directory), Protocol(n=0)).episodes(0)) == 9


def test_a_picture_of_mmbench_may_be_larger_than_a_usual_field_of_csv(directory):
    rows = mmbench.rows()
    rows[0]["image"] = "A" * 200_000
    mmbench.write(directory / "MMBench_DEV_EN.tsv", rows)
    assert len(MMBENCH.at(directory).test()[0].visual.read()) == 150_000


def test_hidden_answers_of_mmbench_are_refused(directory):
    columns = [name for name in mmbench.COLUMNS if name != "answer"]
    mmbench.write(directory / "MMBench_DEV_EN.tsv", mmbench.rows(), columns)
    with pytest.raises(AnnotationError, match="those of the test split are hidden"):
        MMBENCH.at(directory).test()


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, {"answer": "D"}, "the answer 'D' of question 241, with 3 options"),
        (0, {"index": "x"}, "the index 'x', expected a number"),
        (0, {"index": "1" * 5000}, "the index '1111.*, expected a number"),
        (1, {"index": "1000999"}, "rotations without their question 999"),
        (1, {"image": "7"}, "no picture of question 1000241"),
        (None, {}, "one row of each question, expected a row of each rotation"),
    ],
)
def test_another_file_of_mmbench_is_named(directory, number, change, message):
    rows = mmbench.rows()
    if number is None:
        rows = [row for row in rows if int(row["index"]) < 1_000_000]
    else:
        rows[number] |= change
    mmbench.write(directory / "MMBench_DEV_EN.tsv", rows)
    with pytest.raises(AnnotationError, match=message):
        MMBENCH.at(directory).test()


@pytest.mark.parametrize("letter", ["!", "é"])
def test_a_damaged_picture_of_mmbench_is_named(directory, letter):
    rows = mmbench.rows()
    rows[0]["image"] = letter * 100
    mmbench.write(directory / "MMBench_DEV_EN.tsv", rows)
    with pytest.raises(AnnotationError, match="the picture of question 241 is no base64"):
        MMBENCH.at(directory).test()[0].visual.read()


def test_seed_image_ranks_the_texts_of_its_answers(directory):
    make_seed_image(directory)
    items = SEED_IMAGE.at(directory).test()
    assert [item.id for item in items] == ["101669", "103640", "100003"]  # no video
    assert items[1].prefix == "Question: Which is it? Answer:"
    assert items[1].candidates == ("a dax", "red", "blue", "a wug")
    assert items[1].answer == "a wug"
    assert items[1].visual == Image(f"{directory}/SEED-Bench-image/1454426_2591111986")
    answers = choose(items, ("dax", "red", "no"))
    assert metric("ranking").value(answers) == 2 / 3
    assert of_groups(metric("ranking"), answers) == {
        "Scene Understanding": 1.0,
        "Instance Identity": 0.5,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "E"}, "the answer 'E' and the type 1 of question 101669"),
        ({"question_type_id": 7}, "the answer 'A' and the type 7"),
        ({"choice_d": None}, "'choice_d' .str., got None"),
    ],
)
def test_another_file_of_seed_image_is_named(directory, change, message):
    make_seed_image(directory)
    file = directory / "SEED-Bench.json"
    value = json.loads(file.read_text())
    value["questions"][0] |= change
    file.write_text(json.dumps(value))
    with pytest.raises(AnnotationError, match=message):
        SEED_IMAGE.at(directory).test()


def test_a_type_of_seed_image_has_a_number(directory):
    make_seed_image(directory)
    file = directory / "SEED-Bench.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {"question_type": {"Scene Understanding": [1]}}))
    with pytest.raises(AnnotationError, match="no names of question types"):
        SEED_IMAGE.at(directory).test()
