"""NoCaps: pictures by domain, COCO's captions as support, and the file for the server."""

import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.later.nocaps import NOCAPS, NOCAPS_TEST
from flamingo_jax.evaluation.metrics import submission
from flamingo_jax.inference.prompt import Image
from tests.evaluation.answers import answered
from tests.evaluation.fixtures.nocaps import make_nocaps


@pytest.fixture
def directory(tmp_path):
    make_nocaps(epath.Path(tmp_path))
    return tmp_path


def test_pictures_have_their_domain_and_supports_are_of_coco(directory):
    train, val = NOCAPS.at(directory).train(), NOCAPS.at(directory).test()
    assert [item.id for item in train] == ["9", "25", "30", "34"]
    assert (train[0].answer, train[0].references) == (
        "a red square",
        ("a red square", "a small square"),
    )
    assert val[2].visual == Image(f"{directory}/images/val/009c93ef6ff79af7.jpg")
    assert (val[2].prefix, val[2].references) == ("Output:", ("a blue dax", "a dax"))
    assert val[2].extra == {"image_id": 2, "groups": ["out-domain"]}
    assert not {item.shown for item in train} & {item.shown for item in val}


def test_the_test_split_is_a_submission(directory):
    items = NOCAPS_TEST.at(directory).test()
    assert [item.references for item in items] == [()] * 3
    answers = [answered(item.id, "", "a dax<EOC>", extra=item.extra) for item in items]
    assert submission.entries(answers)[1] == {"image_id": 1, "caption": "a dax"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"domain": "near-domain"', '"domain": "far"', "the domain 'far' of picture 1"),
        ('"image_id": 3', '"image_id": 2', "no captions of 1 pictures .picture 3"),
        ('"annotations"', '"others"', "pictures without captions"),
    ],
)
def test_another_file_is_named(directory, old, new, message):
    file = directory / "nocaps_val_4500_captions.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(AnnotationError, match=message):
        NOCAPS.at(directory).test()


def test_the_test_file_is_not_taken_for_that_of_training(directory):
    file = directory / "captions_train2017.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "000000000001.jpg"}]}))
    with pytest.raises(AnnotationError, match="expected a list of records"):
        NOCAPS.at(directory).train()
