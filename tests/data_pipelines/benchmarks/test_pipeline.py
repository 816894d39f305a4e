"""Training splits of benchmarks become records; what is left out is counted."""

import collections
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys

import pytest
from etils import epath

from data_pipelines import run
from data_pipelines.benchmarks import pipeline
from data_pipelines.benchmarks.items import training_units
from data_pipelines.benchmarks.records import (
    BenchmarkRequest,
    LeftOut,
    kind_of_records,
    read_unit,
)
from data_pipelines.collect import Found
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.data.images.read import probe
from flamingo_jax.data.schema import ImageAnswers, text_of
from flamingo_jax.data.sources import Source
from flamingo_jax.evaluation import registry
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.task import TaskError
from tests.evaluation.fixtures import benchmarks, vqav2
from tests.evaluation.fixtures.easy_vqa import make_questions

NO_VALIDATION = {"validation": False}
SMALL = {"num_support": 2}
PICTURES = 8  # of `two_questions`


def made(task, directory, **options):
    """Returns all that the pipeline makes of a fixture, in this process."""
    (place,) = benchmarks.make(task, directory).values()
    request = BenchmarkRequest(input=place, task=task, **options)
    units, are_videos = training_units(request)
    kind = kind_of_records(request.form, are_videos=are_videos)
    units = pickle.loads(pickle.dumps(units))  # as they reach the workers
    return [item for unit in units for item in read_unit(request, kind, unit)]


def reasons(items):
    return collections.Counter(
        item.reason if isinstance(item, Reject) else item.split for item in items
    )


@pytest.fixture
def one_query(monkeypatch):
    """VQAv2 with one validation query, and two questions about each of PICTURES pictures."""
    rows = [(100 + k // 2, f"Is it {k}?", ["yes"] * 10) for k in range(2 * PICTURES)]
    monkeypatch.setattr(vqav2, "TRAIN", tuple(rows))
    one = dataclasses.replace(registry.BENCHMARKS["vqav2"], validation_queries=1)
    monkeypatch.setitem(registry.BENCHMARKS, "vqav2", one)
    return one


@pytest.mark.parametrize(
    "task", [name for name, each in registry.BENCHMARKS.items() if each.max_shots]
)
def test_every_benchmark_becomes_records(task, tmp_path):
    items = made(task, tmp_path, **NO_VALIDATION)
    train = registry.BENCHMARKS[task].at(tmp_path).train()
    found = [item for item in items if isinstance(item, Found)]
    by_id = {json.loads(item.record.metadata)["id"]: item.record for item in found}
    assert len(by_id) == len(found) > 1
    for item in train:
        if item.answer and item.visual is not None:  # ScienceQA has questions without a picture
            record = by_id[item.id]
            assert " ".join(record.prompts) == item.prefix
            assert item.answer in record.answers
    assert all(item.split == "train" for item in found)


def test_all_annotated_answers_are_kept(tmp_path):
    first = made("vqav2", tmp_path, **NO_VALIDATION)[0].record
    assert first.prompts == ("Question: What is this photo taken looking through? Answer:",)
    assert collections.Counter(first.answers) == {"net": 8, "netting": 1, "mesh": 1}
    assert first.text.endswith("Answer: net")
    (tmp_path / "again").mkdir()
    first = made("vqav2", tmp_path / "again", references="first", **NO_VALIDATION)[0].record
    assert first.answers == ("net",)


def test_a_dialogue_has_its_answers_between_its_prompts(tmp_path):
    record = made("visdial", tmp_path, **NO_VALIDATION)[0].record
    assert len(record.prompts) == 2 * 10 - 1 and len(record.answers) == 1
    assert record.prompts[0].startswith("a picture of train number 9 Question: ")
    assert all(prompt.endswith("Answer:") for prompt in record.prompts[::2])


def test_videos_have_the_size_and_rate_of_training(tmp_path):
    options = {"fps": 2.0, "frame_size": 8, "max_seconds": 2.0}
    items = made("youcook2", tmp_path, **options, **NO_VALIDATION)
    counts = [len(item.record.frames) for item in items]
    assert counts == [4, 4, 4, 4]  # of segments of 3, 2, 3 and 5 seconds
    assert {item.record.fps for item in items} == {2.0}
    assert {probe(frame).width for item in items for frame in item.record.frames} == {8}
    # Two segments of one video are two clips.
    assert items[0].record.frames != items[1].record.frames


def test_validation_is_what_evaluate_asks_and_shares_no_picture(one_query, tmp_path):
    items = made("vqav2", tmp_path, **SMALL)
    found = {
        (item.split, *json.loads(item.record.metadata).values())
        for item in items
        if isinstance(item, Found)
    }
    task = FewShotTask(
        one_query.at(tmp_path), Protocol(n=0, seed=1, split="validation", num_support=2)
    )
    queries = {episode.query_id for episode in task.episodes(0)}
    assert {id for split, id, _ in found if split == "validation"} == queries
    shown = collections.defaultdict(set)
    for split, _, picture in found:
        shown[split].add(picture)
    assert shown["validation"] and not shown["validation"] & shown["train"]
    other = {
        seed: {
            json.loads(item.record.metadata)["id"]
            for item in made("vqav2", tmp_path, seed=seed, **SMALL)
            if isinstance(item, Found) and item.split == "validation"
        }
        for seed in range(4)
    }
    assert len({frozenset(ids) for ids in other.values()}) > 1


def test_the_other_question_of_a_held_back_picture_is_counted(one_query, tmp_path):
    counts = reasons(made("vqav2", tmp_path, **SMALL))
    assert counts == {"validation": 1, "shown_in_validation": 1, "train": 2 * PICTURES - 2}
    (tmp_path / "pages").mkdir()
    counts = reasons(made("vqav2", tmp_path / "pages", form="pages", page_size=2, **SMALL))
    assert counts == {"shown_in_validation": 1, "train": PICTURES - 1}
    (tmp_path / "three").mkdir()
    counts = reasons(made("vqav2", tmp_path / "three", form="pages", page_size=3, **SMALL))
    assert counts == {"shown_in_validation": 1, "train": 4, "unfilled_page": 2}


def test_what_is_left_out_is_counted(tmp_path):
    (place,) = benchmarks.make("youcook2", tmp_path).values()
    next(epath.Path(place).glob("raw_videos/training/113/*.mp4")).unlink()
    request = BenchmarkRequest(input=place, task="youcook2", **NO_VALIDATION)
    assert LeftOut("missing_video", 2) in training_units(request).units
    (tmp_path / "vqa").mkdir()
    (place,) = benchmarks.make("vqav2", tmp_path / "vqa").values()
    image = next(epath.Path(place).glob("images/train2014/*262146.jpg"))
    image.write_bytes(image.read_bytes()[:100])
    request = dataclasses.replace(request, input=place, task="vqav2")
    units, _ = training_units(request)
    items = [item for unit in units for item in read_unit(request, ImageAnswers.kind, unit)]
    (reject,) = [item for item in items if isinstance(item, Reject)]
    assert reject.broken and reject.reason in ("truncated_image", "not_an_image")


@pytest.mark.parametrize(
    ("damage", "reason"), [("missing", "missing_image"), ("cut off", "not_an_image")]
)
def test_a_turned_image_that_cannot_be_read_is_counted(damage, reason, tmp_path):
    """TextVQA's images that OpenImages lists as rotated are decoded and turned first."""
    (place,) = benchmarks.make("textvqa", tmp_path).values()
    image = epath.Path(place) / "train_images" / "0011223344556677.jpg"
    encoded = image.read_bytes()
    image.unlink()
    if damage == "cut off":
        image.write_bytes(encoded[:40])
    request = BenchmarkRequest(input=place, task="textvqa", **NO_VALIDATION)
    units, _ = training_units(request)
    items = [item for unit in units for item in read_unit(request, ImageAnswers.kind, unit)]
    assert reasons(items) == {"train": 3, reason: 1}
    (reject,) = [item for item in items if isinstance(item, Reject)]
    assert reject.broken and "0011223344556677" in reject.detail


def test_other_forms_have_the_same_texts(tmp_path):
    forms = {
        form: [
            text_of(item.record)
            for item in made("vqav2", tmp_path, form=form, page_size=2, **NO_VALIDATION)
            if isinstance(item, Found)
        ]
        for form in ("captions", "documents", "pages")
    }
    said = "Question: Is this a square? Answer: yes"
    assert forms["captions"][1] == said
    two = forms["captions"][0]
    assert two.count("Question:") == 2 and "Answer: red" in two and "Answer: net" in two
    assert sorted(map(len, forms["documents"])) == sorted(map(len, forms["captions"]))
    assert len(forms["captions"]) == 4  # pictures
    assert len(forms["pages"]) == 2  # the fifth question does not fill a page
    assert all(page.count("Question:") == 2 for page in forms["pages"])


@pytest.mark.parametrize("form", ["captions", "documents", "pages"])
def test_the_order_of_texts_does_not_depend_on_where_the_files_lie(form, tmp_path):
    one = epath.Path(tmp_path) / "one"
    make_questions(one, train=8, test=1)
    shutil.copytree(one, tmp_path / "two")

    def texts(place):
        request = BenchmarkRequest(input=str(place), task="easy_vqa", form=form, **NO_VALIDATION)
        units, _ = training_units(request)
        kind = kind_of_records(form, are_videos=False)
        found = [item for unit in units for item in read_unit(request, kind, unit)]
        return [text_of(item.record) for item in found if isinstance(item, Found)]

    assert texts(one) == texts(tmp_path / "two")


@pytest.mark.parametrize("form", ["captions", "documents"])
def test_texts_without_answers_that_say_nothing_of_the_picture(form, tmp_path):
    items = made("vqav2", tmp_path, form=form, leave_out=("yes", "net"), **NO_VALIDATION)
    texts = [text_of(item.record) for item in items if isinstance(item, Found)]
    assert texts[0].count("Question:") == 1 and texts[0].endswith("Answer: red")
    assert not any("yes" in text for text in texts)
    assert reasons(items)["no_answer"] == 4 - len(texts) > 0  # of such questions alone


def test_a_dataset_with_a_validation_split(one_query, tmp_path):
    (place,) = benchmarks.make("vqav2", tmp_path).values()
    output = epath.Path(tmp_path / "records")
    output.mkdir()
    request = BenchmarkRequest(input=place, task="vqav2", seed=3, **SMALL)
    counts = pipeline.build(request, output, Execution(num_workers=1))
    assert counts == {
        "in": 2 * PICTURES,
        "out: train": 2 * PICTURES - 2,
        "out: validation": 1,
        "left out: shown_in_validation": 1,
    }
    assert len(Source(output, "validation")) == 1
    assert all(record.answers for record in (Source(output)[0], Source(output, "validation")[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--task is missing"),
        ({"task": "vqav2", "input": "x", "form": "pears"}, "--form='pears'.*answers"),
        ({"task": "vqav2", "input": "x", "references": "some"}, "--references='some'.*first"),
        ({"task": "vqav2", "input": "x", "leave_out": ("no",)}, "--leave_out=no .*--form=answers"),
        ({"task": "vqav2", "input": "x", "fps": 0.0}, "--fps=0.0"),
        ({"task": "vqav2", "input": "x", "seed": -1}, "--seed"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkRequest(**options)


def test_what_cannot_be_made_is_one_sentence(tmp_path):
    (place,) = benchmarks.make("vqav2", tmp_path).values()
    with pytest.raises(TaskError, match=r"'vqa2'.*vqav2"):
        training_units(BenchmarkRequest(input=place, task="vqa2"))
    with pytest.raises(TaskError, match=r"2048 test supports.*--novalidation"):
        training_units(BenchmarkRequest(input=place, task="vqav2"))
    with pytest.raises(TaskError, match=r"vatex shows videos.*--form"):
        training_units(BenchmarkRequest(input=place, task="vatex", form="pages"))
    with pytest.raises(ValueError, match=r"--validation_share has no effect"):
        request = BenchmarkRequest(input=place, task="vqav2")
        pipeline.build(request, epath.Path(tmp_path), Execution(validation_share=0.1))
    assert run.PIPELINES["benchmark"].build is pipeline.build


def test_workers_do_not_import_the_evaluation():
    code = "import sys, data_pipelines.run; assert 'flamingo_jax.evaluation' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
