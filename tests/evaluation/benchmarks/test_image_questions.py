"""VQAv2, OK-VQA, VizWiz, TextVQA: questions and ten answers each."""

import json

import numpy as np
import pytest
from etils import epath

from flamingo_jax.evaluation import registry, task
from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.okvqa import OKVQA
from flamingo_jax.evaluation.benchmarks.textvqa import TEXTVQA
from flamingo_jax.evaluation.benchmarks.vizwiz import VIZWIZ, VIZWIZ_VAL
from flamingo_jax.evaluation.benchmarks.vqav2 import VQAV2, VQAV2_VAL
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.inference.prompt import Image
from flamingo_jax.inference.visuals import PromptError, load_frames
from tests.evaluation.fixtures import okvqa, textvqa, vizwiz, vqav2


def made(make, tmp_path):
    make(epath.Path(tmp_path))
    return epath.Path(tmp_path)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_vqav2(tmp_path):
    directory = made(vqav2.make_vqav2, tmp_path)
    train, test = VQAV2.at(directory).train(), VQAV2.at(directory).test()
    val = VQAV2_VAL.at(directory).test()
    assert [item.id for item in train[:3]] == ["458752000", "458752001", "262146002"]
    first = train[0]
    assert first.visual == Image(f"{directory}/images/train2014/COCO_train2014_000000458752.jpg")
    assert first.prefix == "Question: What is this photo taken looking through? Answer:"
    assert first.answer == "net" and first.references == ("net",) * 8 + ("netting", "mesh")
    assert first.extra == {
        "question_id": 458752000,
        "question_type": "what is this",
        "answer_type": "other",
    }
    assert train[3].answer == "2" and train[3].references == tuple("2332224222")
    assert test[2].visual == Image(f"{directory}/images/test2015/COCO_test2015_000000000016.jpg")
    assert (test[2].answer, test[2].references, test[2].extra) == ("", (), {"question_id": 16002})
    assert [item.answer for item in val] == [
        "down",
        "picnic table",
        "yes",
    ]  # the first of equally frequent ones
    assert VQAV2_VAL.at(directory).train()[0].prefix == first.prefix


def test_vqav2_knows_all_questions_of_the_submission(tmp_path):
    directory = made(vqav2.make_vqav2, tmp_path)
    assert VQAV2.at(directory).submission_questions() == [1000, 1001, 16002, 19003]
    (directory / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    assert VQAV2.at(directory).submission_questions() == ()


def test_variants_of_a_benchmark_share_its_directory(tmp_path):
    directory = str(made(vqav2.make_vqav2, tmp_path))
    task_of_val = registry.create("vqav2_val", {"vqav2": directory}, Protocol(n=2, seed=0))
    (episode, *_) = task_of_val.episodes(1)
    assert len(episode.references) == 10
    with pytest.raises(task.TaskError, match="--config.data.vizwiz=DIRECTORY"):
        registry.create("vizwiz_val", {"vqav2": directory})


def test_okvqa_shows_what_was_typed_and_compares_stems(tmp_path):
    directory = made(okvqa.make_okvqa, tmp_path)
    train, test = OKVQA.at(directory).train(), OKVQA.at(directory).test()
    assert (train[3].answer, train[3].references) == ("riding", ("ride",) * 10)
    assert train[3].extra["raw_answers"] == ["riding"] * 6 + ["rides"] * 4
    assert (
        test[0].answer == "racing"
        and test[0].references == ("race",) * 6 + ("motocross",) * 2 + ("ride",) * 2
    )
    assert test[0].visual == Image(f"{directory}/images/val2014/COCO_val2014_000000297147.jpg")
    assert test[1].prefix == "Question: Name the type of plant this is? Answer:"


def test_vizwiz(tmp_path):
    directory = made(vizwiz.make_vizwiz, tmp_path)
    train, test = VIZWIZ.at(directory).train(), VIZWIZ.at(directory).test()
    val = VIZWIZ_VAL.at(directory).test()
    assert train[0].visual == Image(f"{directory}/train/VizWiz_train_00000000.jpg")
    assert (train[0].answer, train[0].extra) == ("basil", {"image": "VizWiz_train_00000000.jpg"})
    assert train[3].answer == "t36m"  # most annotators gave no answer
    assert train[3].references == ("",) * 6 + ("t36m",) * 4
    assert [(item.answer, item.references) for item in test] == [("", ())] * 3
    assert (
        test[2].prefix == "Question: What's this say? Answer:"
        and test[2].id == "VizWiz_test_00000002"
    )
    assert [item.answer for item in val] == ["unanswerable", "fan", "pink"]


def test_textvqa_turns_rotated_images_upright(tmp_path):
    directory = made(textvqa.make_textvqa, tmp_path)
    train, test = TEXTVQA.at(directory).train(), TEXTVQA.at(directory).test()
    assert test[0].prefix == "Question: which brand are the bottles? Answer:"
    assert test[0].references == ("budweiser",) * 5 + ("bud light",) * 5
    assert (test[0].id, test[0].extra) == ("34602", {"question_id": 34602})
    assert train[0].answer == "dakota digital"
    upright = load_frames(test[0].visual, 16)[0]
    stored = directory / "train_images/003a8ae2ef43b901.jpg"
    # counterclockwise
    np.testing.assert_array_equal(upright, np.rot90(load_frames(Image(stored), 16)[0]))
    assert test[0].visual == test[1].visual  # one image, two questions
    assert test[2].visual == Image(f"{directory}/train_images/1fb3fb93b2ae0ff0.jpg")
    half = load_frames(train[2].visual, 16)[0]
    stored = load_frames(Image(directory / "train_images/0011223344556677.jpg"), 16)[0]
    np.testing.assert_array_equal(half, stored[::-1, ::-1])
    (directory / "train_images/0011223344556677.jpg").write_bytes(b"no image")
    with pytest.raises(PromptError, match=r"0011223344556677.jpg turned by 180 .* cannot be read"):
        load_frames(train[2].visual, 16)
    (directory / "train-images-boxable-with-rotation.csv").unlink()
    assert isinstance(TEXTVQA.at(directory).test()[0].visual, Image)


def vqav2_train_as_val(directory):
    name = "v2_OpenEnded_mscoco_{}_questions.json"
    (directory / name.format("train2014")).replace(directory / name.format("val2014"))


def vqav2_answers_of_others(directory):
    edit(directory / "v2_mscoco_val2014_annotations.json", lambda value: value["annotations"].pop())


def vqav2_answers_without_text(directory):
    edit(
        directory / "v2_mscoco_val2014_annotations.json",
        lambda value: value["annotations"][0].update(answers=["a"]),
    )


def vizwiz_train_as_val(directory):
    (directory / "Annotations/train.json").replace(directory / "Annotations/val.json")


def vizwiz_test_as_val(directory):
    (directory / "Annotations/test.json").replace(directory / "Annotations/val.json")


def textvqa_train_as_val(directory):
    (directory / "TextVQA_0.5.1_train.json").replace(directory / "TextVQA_0.5.1_val.json")


def textvqa_odd_rotation(directory):
    (directory / "train-images-boxable-with-rotation.csv").write_text("ImageID,Rotation\n0,45.0\n")


@pytest.mark.parametrize(
    ("make", "benchmark", "spoil", "message"),
    [
        (
            *(vqav2.make_vqav2, VQAV2_VAL, vqav2_train_as_val),
            "val2014_questions.json holds the split 'train2014', expected the split 'val2014'",
        ),
        (
            *(vqav2.make_vqav2, VQAV2_VAL, vqav2_answers_of_others),
            r"val2014_annotations.json holds no answers to 1 of the questions "
            r"\(question 262148000\)",
        ),
        (
            *(vqav2.make_vqav2, VQAV2_VAL, vqav2_answers_without_text),
            "val2014_annotations.json holds answers that are no objects with the text 'answer'",
        ),
        (
            *(vizwiz.make_vizwiz, VIZWIZ_VAL, vizwiz_train_as_val),
            "val.json holds questions about VizWiz_train_00000000.jpg, "
            "expected about images VizWiz_val_",
        ),
        (
            *(vizwiz.make_vizwiz, VIZWIZ_VAL, vizwiz_test_as_val),
            "val.json: record 0 should have 'answers' .list., got only image, question"
            ".*of another split",
        ),
        (
            *(textvqa.make_textvqa, TEXTVQA, textvqa_train_as_val),
            "val.json holds questions of the split train, expected of val",
        ),
        (
            *(textvqa.make_textvqa, TEXTVQA, textvqa_odd_rotation),
            "rotation.csv holds the rotation '45.0', expected multiples of 90 degrees",
        ),
    ],
)
def test_files_of_another_split_are_an_error(tmp_path, make, benchmark, spoil, message):
    directory = made(make, tmp_path)
    spoil(directory)
    with pytest.raises(AnnotationError, match=message):
        benchmark.at(directory).test()
