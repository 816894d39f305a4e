"""Retrieval: captions by image, images by caption, and the world's batches of different scenes."""

import json

import numpy as np
import pytest
from etils import epath

from flamingo_jax.evaluation import registry, task
from flamingo_jax.evaluation.benchmarks.contrastive_task import RECALLS
from flamingo_jax.evaluation.comparison import ComparisonTask
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.retrieval import both_ways, distinct_batches, recalls
from flamingo_jax.evaluation.world_tasks import read_albums
from flamingo_jax.world.text import caption
from tests.evaluation.fixtures import coco, flickr30k
from tests.evaluation.meaning import Meaning, compare
from tests.training import small


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return str(small.make_world(tmp_path_factory.mktemp("world")))


def test_several_captions_of_an_image():
    """Image 0 has its first right caption at rank 2, image 1 at rank 0.

    Captions 1 and 2 have their image at rank 0, captions 0 and 3 at rank 1.
    """
    images = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    captions = np.array([[-1, 0, 0], [0.5, 0, 0], [0.6, 0.7, 0], [0.9, 0.1, 0]], np.float32)
    to_text, to_image = both_ways(images, captions, np.array([0, 0, 1, 1]))
    assert to_text.tolist() == [2, 0]
    assert to_image.tolist() == [1, 0, 0, 1]
    assert recalls(to_text, to_image) == {
        "image_to_text_recall_at_1": 0.5,
        "image_to_text_recall_at_5": 1.0,
        "image_to_text_recall_at_10": 1.0,
        "text_to_image_recall_at_1": 0.5,
        "text_to_image_recall_at_5": 1.0,
        "text_to_image_recall_at_10": 1.0,
    }


@pytest.mark.parametrize("name", ["coco", "flickr30k"])
def test_captioned_benchmarks(tmp_path, name):
    """All captions of the test images are searched.

    An image that shows another image's caption is wrong.
    """
    fixture = {"coco": coco, "flickr30k": flickr30k}[name]
    getattr(fixture, f"make_{name}")(epath.Path(tmp_path))
    captions = {each[-2]: each[-1] for each in fixture.IMAGES if each[0] == "test"}
    named = {f"{key:012d}.jpg" if name == "coco" else key: texts for key, texts in captions.items()}
    made = registry.create(f"{name}_retrieval", {name: str(tmp_path)})
    assert isinstance(made, ComparisonTask) and made.metrics == RECALLS

    def own(visual):
        return next(texts for key, texts in named.items() if str(visual.path).endswith(key))

    model = Meaning(own)
    found = compare(made, model, n=0, seed=1)
    assert sorted(model.read) == sorted(text for texts in captions.values() for text in texts)
    assert found.n == 3 and set(found.values.values()) == {1.0}
    assert {each["caption_rank"] for each in found.predictions} == {1}
    wrong = compare(made, Meaning(lambda visual: next(iter(named.values()))), n=0, seed=1)
    assert wrong.values["image_to_text_recall_at_1"] == pytest.approx(1 / 3)
    assert wrong.values["image_to_text_recall_at_10"] == 1.0
    assert compare(made, model, n=2, seed=1).n == 2
    with pytest.raises(
        task.TaskError, match=f"task '{name}_retrieval': got n=4; its test split has 3 queries"
    ):
        compare(made, model, n=4, seed=1)


def test_five_captions_count(monkeypatch, tmp_path):
    many = [("test", "val2014", 1, [f"caption {number}" for number in range(7)])]
    monkeypatch.setattr(coco, "IMAGES", (*many, *coco.IMAGES))
    coco.make_coco(epath.Path(tmp_path))
    model = Meaning(lambda visual: ["anything"])
    compare(registry.create("coco_retrieval", {"coco": str(tmp_path)}), model, n=0, seed=1)
    assert sorted(text for text in model.read if text.startswith("caption")) == [
        f"caption {i}" for i in range(5)
    ]


def test_in_a_batch_every_scene_is_there_once():
    scenes = list("aabacbddbc")
    batches = distinct_batches(scenes, 3)
    assert batches == [[0, 2, 4], [1, 5, 6], [3, 7, 8]]
    assert all(len({scenes[place] for place in batch}) == 3 for batch in batches)
    places = [place for batch in batches for place in batch]
    assert len(set(places)) == len(places)
    assert distinct_batches(scenes, 3, most=1) == batches[:1]
    assert distinct_batches(list("aab"), 3) == []


def test_the_world(world):
    """Each picture has its caption at rank 0, and a batch has each scene only once.

    The other order of two objects is the same scene.
    """
    albums = read_albums(world)
    shown = {
        image: caption(attributes)
        for pool in ("test_one", "test_two")
        for image, attributes in zip(albums[pool].images, albums[pool].attributes, strict=True)
    }
    made = registry.create("world_retrieval", {"world": world})
    model = Meaning(lambda image: [shown[image]])
    found = compare(made, model, n=64, seed=1)
    assert (found.n, set(found.values.values())) == (64, {1.0})
    assert model.read == [shown[image] for image in model.seen]
    scenes = [frozenset(text.split(" and ")) for text in model.read]
    assert len(set(scenes)) == 64
    assert all(
        each["query_id"].startswith(("test_one/", "test_two/")) for each in found.predictions
    )
    again = Meaning(lambda image: [shown[image]])
    compare(made, again, n=64, seed=1)
    assert again.read == model.read
    compare(made, again, n=64, seed=2)
    assert again.read[64:] != model.read
    blind = compare(made, Meaning(lambda image: ["nothing"]), n=64, seed=1).values
    assert blind["image_to_text_recall_at_1"] == blind["text_to_image_recall_at_1"] == 1 / 64
    assert (
        compare(made, model, n=9, seed=1).n == 9
    )  # fewer pictures than a batch are a smaller batch
    json.dumps(found.predictions)


def test_a_world_that_is_too_small_says_so(world):
    made = registry.create("world_retrieval", {"world": world})
    with pytest.raises(task.TaskError, match="got n=129; .* has 128 test pictures"):
        compare(made, Meaning(lambda image: ["a"]), n=129, seed=1)
    with pytest.raises(task.TaskError, match="fill 1 batches of 64 different scenes; expected 2"):
        compare(made, Meaning(lambda image: ["a"]), n=128, seed=1)


def test_settings_of_support_examples_are_refused():
    with pytest.raises(
        task.TaskError, match="'coco_retrieval' compares embeddings .* selection=rices"
    ):
        registry.create("coco_retrieval", {"coco": "somewhere"}, Protocol(selection="rices"))
