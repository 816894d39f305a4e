"""Captions by group and their toxicity: the joins, the test by hand, and what is refused."""

import json
import pathlib

import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import PathError
from flamingo_jax.evaluation import predictions
from flamingo_jax.evaluation.metrics import cider, ptb
from flamingo_jax.evaluation.report import caption_groups, joined
from flamingo_jax.evaluation.report.caption_table import caption_tables
from tests.evaluation.answers import answered

TEXTS = ("a dog", "a cat", "a horrid cat", "a cow", "two cows Output: no", "a bird")
VALUES = (1.0, 2.0, 3.0, 2.5, 4.5, 9.0)  # a score of each


def caption(number, text, task="coco", shots=32):
    return answered(str(number), "", text, references=(text,), task=task, shots=shots, parts=("p",))


def scores(answers):
    return [VALUES[int(answer.episode.query_id) - 1] for answer in answers]


def toxicity(texts):
    assert not any("Output" in text for text in texts)  # trimmed as for the metrics
    return [0.9 if "horrid" in text else 0.1 for text in texts]


def wrong_numbers(texts):
    return [2.0 for _ in texts]


def too_few(texts):
    return texts and [0.5]


def no_numbers(texts):
    return texts


@pytest.fixture
def run(tmp_path):
    """The output of an evaluation: captions at 0 and 32 shots, and questions."""
    answers = [
        *(caption(number, text, shots=0) for number, text in enumerate(TEXTS, start=1)),
        *(caption(number, text) for number, text in enumerate(TEXTS, start=1)),
        caption(1, "yes", task="vqav2_val"),
    ]
    (tmp_path / "run").mkdir()
    predictions.write(tmp_path / "run" / "predictions.jsonl", answers)
    return str(tmp_path / "run")


@pytest.fixture
def people(tmp_path):
    """1, 2, 3 female; 4, 5 male; 6 unknown. Of the skin two groups of one and two."""
    file = tmp_path / "people.csv"
    lines = (
        "1,female,darker",
        "2,female,",
        "3,female,lighter",
        "4,male,lighter",
        "5,male,",
        "9,male,",
    )
    file.write_text("\n".join(("image_id,gender,skin", *lines)) + "\n")
    return str(file)


def test_groups_are_compared_by_welchs_test(run, people):
    """By hand: means 2 and 3.5, variances 1 and 2, so t = -1.5 / sqrt(1/3 + 2/2)."""
    (table,) = caption_tables([run], people, None, of_each=scores)
    found = {row.cells[0]: row.cells[1:] for row in table.table.rows}
    assert list(found) == [
        f"{run}: COCO, {shots} shots, {attribute}"
        for shots in (0, 32)
        for attribute in ("gender", "skin")
    ]
    gender = found[f"{run}: COCO, 32 shots, gender"]
    assert gender[:7] == ("female", "3", "200.0", "male", "2", "350.0", "-150.0")
    assert float(gender[7]) == pytest.approx(-1.5 / (4 / 3) ** 0.5, abs=0.005)
    # Welch and Satterthwaite: (1/3 + 1)^2 / ((1/3)^2 / 2 + 1^2 / 1) = 1.684 degrees of freedom.
    # Integrating the density of t from -1.299 to 1.299 gives 0.656.
    assert float(gender[8]) == pytest.approx(0.344, abs=0.0005)
    skin = found[f"{run}: COCO, 32 shots, skin"]
    assert skin == ("darker", "1", "100.0", "lighter", "2", "275.0", "-175.0", "-", "-")
    notes = " ".join(table.notes)
    assert "Number of tests: 4" in notes
    assert "1 of 6 captions have no gender." in notes and "3 of 6 captions have no skin." in notes


def test_a_difference_between_equal_groups_is_not_significant():
    same = [1.0, 2.0, 3.0]
    assert caption_groups.welch(same, same) == (0.0, 1.0)
    t, p = caption_groups.welch([0.0, 0.1, 0.2, 0.1], [5.0, 5.1, 5.2, 5.3])
    assert t < -30 and p < 1e-5
    assert caption_groups.welch([1.0], [1.0, 2.0]) == (None, None)
    assert caption_groups.welch([1.0, 1.0], [2.0, 2.0]) == (None, None)


def test_annotations_in_json_lines_and_with_other_ids(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": 7, "age": "old"}\n\n{"id": "8", "age": null, "x": 1}\n')
    assert caption_groups.read_groups(file) == {"age": {"7": "old"}, "x": {"8": "1"}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,gender\nx,male\n", "line 2: expected a column image_id or query_id or id"),
        ("a.csv", "image_id,gender\n1,male\n1,female\n", "line 3: image 1 has gender female here"),
        ("a.csv", "image_id\n1\n", "has no annotations"),
        ("a.csv", "", "has no annotations"),
        ("a.csv", 'image_id,g\n1,"a\n2,b\n', "line 3 is no CSV: unexpected end of data"),
        ("a.csv", f"image_id,g\n1,{'a' * 200_000}\n", "line 2 is no CSV: field larger than"),
        ("a.csv", "image_id,g\n1,a,b\n", "line 2: expected 2 values, as the head has, got 3"),
        ("a.csv", "image_id,g,g\n1,a,b\n", "has the column 'g' twice"),
        ("a.csv", "image_id,g\n,a\n", "line 2: image_id is empty"),
        ("a.jsonl", '{"image_id": null, "g": "a"}', "line 1: image_id is empty"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[1]", r"line 1: expected an object, got \[1\]"),
        (
            "a.csv",
            "image_id,gender\n77,male\n78,female\n",
            "ids such as 1, 2, 3, --groups such as 77, 78",
        ),
    ],
)
def test_annotations_that_cannot_be_used_are_one_line(run, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        caption_tables([run], str(tmp_path / name), None, of_each=scores)


def test_an_attribute_with_many_groups_is_named(run, tmp_path):
    lines = [f"{i},{'female' if i < 4 else 'male'},url{i}" for i in range(1, 20)]
    (tmp_path / "a.csv").write_text("\n".join(["image_id,gender,url", *lines]))
    answers = [caption(number, "a dog") for number in range(1, 20)]
    groups = caption_groups.read_groups(tmp_path / "a.csv")
    pairs, notes = caption_groups.compare(answers, [float(i) for i in range(19)], groups)
    assert [pair.attribute for pair in pairs] == ["gender"]
    assert notes == ["url has 19 groups, expected at most 10: it is left out."]


def test_toxicity_is_by_a_function_of_the_user(run):
    (table,) = caption_tables([run], None, "tests.evaluation.report.test_captions:toxicity")
    assert [row.cells[1:] for row in table.table.rows[:2]] == [("3", "0.900", "a horrid cat")] * 2
    assert ("5", "0.100", "two cows") in [row.cells[1:] for row in table.table.rows]
    assert f"{run}: COCO, 0 shots: 1 of 6 captions have 0.5 or more; mean 0.233" in table.notes[0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_numbers", "returned 6 numbers for 6 texts, from 2 to 2; expected one in 0..1"),
        ("too_few", "returned 1 numbers for 6 texts"),
        ("no_numbers", "returned a list, expected a number for each text"),
        ("nothing", "there is no such function"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_line(run, function, message):
    with pytest.raises(ConfigError, match=message):
        caption_tables([run], None, f"tests.evaluation.report.test_captions:{function}")


def test_what_is_missing_is_one_line(run, people, tmp_path):
    with pytest.raises(ConfigError, match="--report=CAPTIONS needs the output of an evaluation"):
        joined.join("CAPTIONS", [run], None)
    with pytest.raises(PathError, match="There is no file .*none. Check --groups"):
        joined.join("CAPTIONS", [run], None, f"{tmp_path}/none")
    with pytest.raises(PathError, match="There is no file nowhere/predictions.jsonl"):
        joined.join("CAPTIONS", ["nowhere"], None, people)
    with pytest.raises(ConfigError, match="--groups and --toxicity belong to --report=CAPTIONS"):
        joined.join("TABLE3", [run], None, people)
    other = tmp_path / "other"
    other.mkdir()
    predictions.write(other / "predictions.jsonl", [caption(1, "yes", task="vqav2_val")])
    with pytest.raises(ConfigError, match="other: predictions.jsonl has no captions"):
        joined.join("CAPTIONS", [str(other)], None, people)
    (other / "predictions.jsonl").write_text('{"task": "coco"}\n')
    with pytest.raises(PathError, match="predictions.jsonl, line 1 is damaged"):
        joined.join("CAPTIONS", [str(other)], None, people)


def test_predictions_are_read_as_they_were_written(run):
    found = predictions.read(f"{run}/predictions.jsonl")
    assert len(found) == 13
    written = pathlib.Path(run, "predictions.jsonl").read_text().splitlines()
    assert json.dumps(found[4].line()) == written[4]


def test_cider_of_each_caption_has_the_mean_that_is_reported(run, people, tmp_path):
    """With the tokenizer of the official code, where it is installed."""
    try:
        ptb.check()
    except cider.required.MissingResourceError as error:
        pytest.skip(str(error))
    answers = [caption(number, text) for number, text in enumerate(TEXTS, start=1)]
    each = cider.of_each(answers)
    assert sum(each) / len(each) == pytest.approx(cider.cider(answers))
    text = joined.join("CAPTIONS", [run], tmp_path / "out", people)
    assert "captions.md" in text and "female" in text
