"""Videos without a question.

Captions of VATEX and YouCook2, classes of Kinetics-700, actions of RareAct.
"""

import dataclasses
import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.kinetics700 import KINETICS700
from flamingo_jax.evaluation.benchmarks.rareact import RAREACT, action
from flamingo_jax.evaluation.benchmarks.vatex import VATEX
from flamingo_jax.evaluation.benchmarks.youcook2 import YOUCOOK2
from flamingo_jax.evaluation.metrics.cider import CIDER
from flamingo_jax.inference.prompt import Video
from tests.evaluation.fixtures.kinetics700 import make_kinetics700
from tests.evaluation.fixtures.rareact import make_rareact
from tests.evaluation.fixtures.vatex import make_vatex
from tests.evaluation.fixtures.youcook2 import make_youcook2


def fields(item):
    """All of an item; `Item` itself compares by identity."""
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def test_vatex_keeps_the_english_captions_as_they_are(directory):
    make_vatex(directory)
    item = VATEX.at(directory).train()[0]
    assert fields(item) == {
        "id": "--07WQ2iBlw_000001_000011",
        "visual": Video(directory / "videos" / "--07WQ2iBlw_000001_000011.mp4"),
        "prefix": "Output:",
        "answer": "A big red circle.",
        "references": ("A big red  circle.", "circle"),
        "candidates": (),
        "label": "",
        "extra": {},
        "turns": (),
        "source": "--07WQ2iBlw",
    }
    assert len(VATEX.at(directory).test()) == 3 and VATEX.metrics == (CIDER,)


def test_vatex_without_captions_is_refused(directory):
    make_vatex(directory)
    path = directory / "vatex_public_test_english_v1.1.json"
    rows = json.loads(path.read_text())
    rows[1]["enCap"] = []
    path.write_text(json.dumps(rows))
    with pytest.raises(
        AnnotationError, match="a clip without captions, expected ten captions each"
    ):
        VATEX.at(directory).test()


def test_youcook2_captions_segments(directory):
    make_youcook2(directory)
    train, test = YOUCOOK2.at(directory).train(), YOUCOOK2.at(directory).test()
    assert [item.id for item in train] == [
        "GLd3aX16zBg/0",
        "GLd3aX16zBg/1",
        "aaaaaaaaaaa/0",
        "aaaaaaaaaaa/1",
    ]
    assert train[0].visual == Video(
        directory / "raw_videos" / "training" / "113" / "GLd3aX16zBg.mp4", 1.0, 4.0
    )
    assert (train[0].prefix, train[0].answer) == (
        "Output:",
        "spread red on two slices of white bread",
    )
    assert [item.references for item in test] == [
        ("add green",),
        ("fold the blue square and serve",),
        ("boil the noodles",),
    ]


def test_youcook2_needs_both_subsets(directory):
    make_youcook2(directory)
    path = directory / "youcookii_annotations_trainval.json"
    path.write_text(path.read_text().replace('"validation"', '"testing"'))
    with pytest.raises(
        AnnotationError, match="videos of testing, training alone, expected validation"
    ):
        YOUCOOK2.at(directory).test()


def test_kinetics_has_all_labels_as_candidates(directory):
    make_kinetics700(directory)
    benchmark = KINETICS700.at(directory)
    item = benchmark.test()[0]
    assert fields(item) == {
        "id": "test/a red circle/4YTwq0-73Y__000044_000054",
        "visual": Video(directory / "val" / "a red circle" / "4YTwq0-73Y__000044_000054.mp4"),
        "prefix": "Output:",
        "answer": "a red circle",
        "references": ("a red circle",),
        "candidates": ("a red circle", "abseiling", "air drumming"),
        "label": "a red circle",
        "extra": {},
        "turns": (),
        "source": "4YTwq0-73Y_",
    }
    assert [each.label for each in benchmark.train()] == ["abseiling"] * 2 + [
        "a red circle"
    ] * 2 + ["air drumming"] * 2
    assert pytest.approx(3 / 700) == benchmark.chance  # the mean of 1 and 5 of 700


def test_kinetics_may_be_laid_out_as_its_makers_do(directory):
    make_kinetics700(directory)
    text = (directory / "val.csv").read_text().replace(",val\n", ",validate\n")
    (directory / "val.csv").unlink()
    (directory / "annotations").mkdir()
    (directory / "annotations" / "validate.csv").write_text(text)
    (directory / "val" / "abseiling").rename(directory / "val" / "other")
    (directory / "val").rename(directory / "validate")
    assert len(KINETICS700.at(directory).test()) == 3


def test_rareact_scores_every_action_for_every_row(directory):
    make_rareact(directory)
    benchmark = RAREACT.at(directory)
    items = benchmark.test()
    assert {item.candidates for item in items} == {
        ("shakes a tomato", "fries an orange", "washes the shoes")
    }
    assert fields(items[4]) == {
        "id": "4",
        "visual": Video(directory / "rareact" / "dNZDAKVee-g.mp4", 3.0, 6.0),
        "prefix": "Caption: a person",
        "answer": "fries an orange",
        "references": (),
        "candidates": items[0].candidates,
        "label": "",
        "source": "",
        "turns": (),
        "extra": {
            "verb": "fry",
            "noun": "orange",
            "class": 1,
            "annotation": 4,
            "video": "dNZDAKVee-g",
        },
    }
    assert benchmark.max_shots == 0 and benchmark.train() == ()


@pytest.mark.parametrize(
    ("verb", "noun", "text"),
    [
        *(
            ("cut", "laptop", "cuts a laptop"),
            ("fry", "phone", "fries a phone"),
            ("spray", "eggs", "sprays the eggs"),
        ),
        *(
            ("wash", "apple", "washes an apple"),
            ("close", "oven", "closes an oven"),
            ("unplug", "fridge", "unplugs a fridge"),
        ),
        *(
            ("measure", "hair", "measures the hair"),
            ("microwave", "egg", "microwaves an egg"),
            ("drill", "eggs", "drills the eggs"),
        ),
        ("peel", "corn", "peels the corn"),
    ],
)
def test_actions_have_the_third_person_and_an_article(verb, noun, text):
    assert action(verb, noun) == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",2,wash,", ",7,wash,", "3 classes, but no class_id '2'"),
        (",orange,4", ",orange,5", "the annotation '5', expected 0 to 4"),
    ],
)
def test_rareact_refuses_other_numbers(directory, old, new, message):
    make_rareact(directory)
    text = (directory / "rareact.csv").read_text()
    assert old in text
    (directory / "rareact.csv").write_text(text.replace(old, new))
    with pytest.raises(AnnotationError, match=message):
        RAREACT.at(directory).test()
