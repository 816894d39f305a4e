"""Visual dialogue: the history in the prompt, the 100 answers, their relevance."""

import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.visdial import VISDIAL
from flamingo_jax.inference.prompt import Image
from tests.evaluation.fixtures import visdial


@pytest.fixture
def directory(tmp_path):
    visdial.make_visdial(epath.Path(tmp_path))
    return epath.Path(tmp_path)


def read(directory, name):
    return json.loads((directory / f"visdial_1.0_{name}.json").read_text())


def test_a_support_example_is_the_whole_dialogue(directory):
    items = VISDIAL.at(directory).train()
    assert [item.id for item in items] == ["9", "42", "25", "30"]
    assert [item.visual for item in items[:2]] == [
        Image(f"{directory}/images/train2014/COCO_train2014_000000000009.jpg"),
        Image(f"{directory}/images/val2014/COCO_val2014_000000000042.jpg"),
    ]
    dialog = read(directory, "train")["data"]["dialogs"][0]["dialog"]
    answers = [visdial.ANSWERS[each["answer"]] for each in dialog]
    # image 9 begins with question 9 % 4 = 1; the file has only one question mark
    asked = ["is it big?", "how many are there?", "is this a circle?", "is it red?"] * 3
    rounds = [
        f"Question: {question} Answer: {answer}"
        for question, answer in zip(asked, answers, strict=False)
    ]
    assert f"{items[0].prefix} {items[0].answer}" == " ".join(
        ["a picture of train number 9", *rounds]
    )
    assert items[0].prefix.count("Question:") == 10
    assert items[0].candidates == () and items[0].extra == {}


def test_a_query_is_the_annotated_round_with_those_before(directory):
    items = {item.id: item for item in VISDIAL.at(directory).test()}
    # in the order of the dialogues, not of the annotations
    assert list(items) == ["185565", "284024", "574189"]
    assert {id: item.prefix.count("Question:") for id, item in items.items()} == {
        "185565": 1,
        "284024": 10,
        "574189": 4,
    }
    assert items["185565"].prefix == "a picture of val number 185565 Question: is it big? Answer:"
    dialog = read(directory, "val")["data"]["dialogs"][2]["dialog"]
    item, last = items["574189"], dialog[3]
    assert item.candidates == tuple(visdial.ANSWERS[option] for option in last["answer_options"])
    assert item.answer == visdial.ANSWERS[last["answer"]] == item.candidates[last["gt_index"]]
    assert not item.prefix.endswith(item.answer)
    dense = {each["image_id"]: each for each in read(directory, "val_dense_annotations")}
    assert item.extra == {
        "image_id": 574189,
        "round_id": 4,
        "relevance": dense[574189]["gt_relevance"],
    }
    assert item.visual == Image(
        f"{directory}/images/VisualDialog_val2018/VisualDialog_val2018_000000574189.jpg"
    )
    assert VISDIAL.max_shots == 16


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "val",
            lambda value: value.update(split="train"),
            "visdial_1.0_val.json holds the split 'train', expected 'val'",
        ),
        (
            "val",
            lambda value: value.pop("data"),
            "visdial_1.0_val.json: expected a list of records",
        ),
        (
            "val",
            lambda value: value["data"].pop("answers"),
            "holds no lists `questions` and `answers`",
        ),
        (
            "val",
            lambda value: value["data"].update(answers=["yes"]),
            "image 185565 with numbers of no text",
        ),
        (
            "val",
            lambda value: value["data"]["dialogs"][0]["dialog"][0]["answer_options"].pop(),
            "holds .* image 185565",
        ),
        (
            "val_dense_annotations",
            lambda value: value.pop(0),
            r"no round of 1 images of val \(image 574189\)",
        ),
        (
            "val_dense_annotations",
            lambda value: value[-1].update(round_id=11),
            "holds round 11 of 10 and 100 values for image 185565",
        ),
        (
            "val_dense_annotations",
            lambda value: value[-1]["gt_relevance"].pop(),
            "holds round 1 of 10 and 99 values",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_an_error(directory, name, change, message):
    value = read(directory, name)
    change(value)
    (directory / f"visdial_1.0_{name}.json").write_text(json.dumps(value))
    with pytest.raises(AnnotationError, match=message):
        VISDIAL.at(directory).test()


def test_a_training_image_that_is_in_neither_folder_is_named(directory):
    (directory / "images/val2014/COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(
        AnnotationError,
        match=r"COCO_train2014_000000000042.jpg \(or the same of val2014\), and it is not there",
    ):
        VISDIAL.at(directory).train()
