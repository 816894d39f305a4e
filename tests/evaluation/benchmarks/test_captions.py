"""COCO and Flickr30k: Karpathy's splits, from the official files and from TFDS."""

import json

import pytest
from etils import epath

from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError
from flamingo_jax.evaluation.benchmarks.coco import COCO
from flamingo_jax.evaluation.benchmarks.flickr30k import FLICKR30K
from flamingo_jax.inference.prompt import Image
from flamingo_jax.inference.visuals import load_frames
from tests.evaluation.fixtures import coco, flickr30k


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("coco"))
    coco.make_coco(directory)
    return directory


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return coco.make_coco_prepared(tmp_path_factory.mktemp("tfds"))


def test_coco_has_restval_in_train_and_its_captions_as_they_are(directory):
    train, test = COCO.at(directory).train(), COCO.at(directory).test()
    assert [item.id for item in train] == ["9", "42", "25", "30"]
    assert [item.id for item in test] == ["391895", "60623", "483108"]
    assert train[1].visual == Image(f"{directory}/images/val2014/COCO_val2014_000000000042.jpg")
    # prompts have captions in one line
    assert (train[1].prefix, train[1].answer) == ("Output:", "A blue square.")
    assert train[1].references == ("A  blue\nsquare. ", "square")  # as annotated, for the metric
    assert test[0].references == (
        "A man with a red helmet.",
        "A man on a motor bike.",
        "Man riding.",
    )
    assert test[0].candidates == () and test[0].label == "" and test[0].extra == {}


def test_images_may_be_in_the_directory_itself(directory, tmp_path):
    moved = epath.Path(tmp_path)
    coco.make_coco(moved)
    for name in ("train2014", "val2014"):
        (moved / "images" / name).rename(moved / name)
    assert COCO.at(moved).test()[0].visual == Image(
        f"{moved}/val2014/COCO_val2014_000000391895.jpg"
    )


def test_tfds_gives_the_same_items(directory, prepared):
    """In another order: TFDS shuffles."""
    for split in ("train", "test"):
        files, builder = getattr(COCO.at(directory), split)(), getattr(COCO.at(prepared), split)()
        assert len(files) == len(builder)
        by_id = {item.id: item for item in builder}
        for item in files:
            other = by_id[item.id]
            for name in ("prefix", "answer", "references"):
                assert getattr(other, name) == getattr(item, name)
            assert (load_frames(other.visual, 16) == load_frames(item.visual, 16)).all()
    # images are compared by name
    assert builder[0].visual == builder[0].visual != builder[1].visual
    assert [item.id for item in builder[1:]] == [builder[1].id, builder[-1].id]


def test_a_tfds_dataset_of_another_kind_is_an_error(tmp_path):
    from tests.evaluation.fixtures import imagenet

    message = "Unknown split 'test'.*Expected the builder coco_captions"
    with pytest.raises(AnnotationError, match=message):
        COCO.at(imagenet.make_imagenet_prepared(tmp_path)).test()


def test_flickr30k(tmp_path):
    flickr30k.make_flickr30k(epath.Path(tmp_path))
    benchmark = FLICKR30K.at(tmp_path)
    train, test = benchmark.train(), benchmark.test()
    assert [item.id for item in train] == ["0", "1", "3", "4"]
    assert [item.id for item in test] == ["5", "6", "7"]
    assert test[0].visual == Image(f"{tmp_path}/flickr30k-images/1007129816.jpg")
    assert (test[1].prefix, test[1].answer) == ("Output:", "A black and white dog is running.")
    assert test[1].references == ("A black and white dog is running.", "A dog runs.")


def test_another_dataset_or_split_is_an_error(tmp_path):
    path = epath.Path(tmp_path)
    flickr30k.make_flickr30k(path)
    (path / "dataset_flickr30k.json").rename(path / "dataset_coco.json")
    message = "dataset_coco.json holds the captions of 'flickr30k', expected those of 'coco'"
    with pytest.raises(AnnotationError, match=message):
        COCO.at(path).test()
    coco.make_coco(path)
    value = json.loads((path / "dataset_coco.json").read_text())
    value["images"] = [image for image in value["images"] if image["split"] in ("val", "train")]
    (path / "dataset_coco.json").write_text(json.dumps(value))
    message = "dataset_coco.json holds images of train, val alone, expected images of test"
    with pytest.raises(AnnotationError, match=message):
        COCO.at(path).test()
    value["images"][0]["sentences"] = []
    (path / "dataset_coco.json").write_text(json.dumps(value))
    with pytest.raises(AnnotationError, match="expected a list of records, got an empty one"):
        COCO.at(path).train()
