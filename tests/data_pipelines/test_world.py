"""The synthetic world on disk.

Counts, determinism, and leaks between training and test records (all records are scanned).
"""

import dataclasses
import json
import re

import pytest
from etils import epath

from data_pipelines import world
from flamingo_jax.data.schema import Document, InterleavedPage, VideoText
from flamingo_jax.data.sources import Source
from flamingo_jax.world import scenes
from flamingo_jax.world.scenes import COLOURS, SHAPES
from flamingo_jax.world.text import NEW_NAMES, SEEN_NAMES

WITH_IMAGES = ("captions", "pairs", "pages", "videos")
COMBINATION = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")
REQUEST = world.WorldRequest(seed=1, size=world.SIZES["smoke"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("world"))
    world.build(REQUEST, directory)
    return directory


@pytest.fixture(scope="module")
def records(directory):
    """All records by (dataset, split)."""
    counts = json.loads((directory / "world.json").read_text())["counts"]
    loaded = {}
    for name in counts:
        dataset, split = name.split("/")
        source = Source(directory / dataset, split)
        loaded[dataset, split] = [source[i] for i in range(len(source))]
    assert {f"{d}/{s}": len(found) for (d, s), found in loaded.items()} == counts
    return loaded


def images(record) -> tuple[bytes, ...]:
    if isinstance(record, InterleavedPage):
        return record.images
    if isinstance(record, VideoText):
        return record.frames
    return () if isinstance(record, Document) else (record.image,)


def pool_of(record) -> str:
    return json.loads(record.metadata)["id"].split("/")[0]


def texts(record) -> tuple[str, ...]:
    return record.texts if isinstance(record, InterleavedPage) else (record.text,)


def test_counts_are_as_asked(records):
    size = REQUEST.size
    assert len(records["captions", "train"]) == size.one + size.two
    assert len(records["pairs", "train"]) == size.pairs
    assert len(records["pages", "train"]) == size.pages
    assert len(records["text", "train"]) == size.documents
    assert len(records["videos", "train"]) == size.videos
    assert len(records["test_images", "test"]) == size.test_one + size.test_two + size.test_held_out
    assert all(len(records[name, "test"]) == size.held_back for name in (*WITH_IMAGES, "text"))


def test_test_pictures_are_in_no_training_record(records):
    tested = [r for (_, split), found in records.items() if split == "test" for r in found]
    held_back = {image for record in tested for image in images(record)}
    assert len(held_back) >= 384
    for name in WITH_IMAGES:
        trained = {image for record in records[name, "train"] for image in images(record)}
        assert trained
        assert not trained & held_back


def test_training_pictures_come_from_the_training_pools(records):
    """Each picture of a page or pair is one of `captions`, and its metadata name its pool.

    Each pool has a different seed.
    """
    pools = {record.image: pool_of(record) for record in records["captions", "train"]}
    assert set(pools.values()) == {"train_one", "train_two"}
    showing = (*records["pages", "train"], *records["pairs", "train"])
    used = {pools[image] for record in showing for image in images(record)}
    assert used == {"train_one", "train_two"}
    in_test = {pool_of(record) for record in records["test_images", "test"]}
    assert in_test == {"test_one", "test_two", "test_held_out"}


def test_new_names_are_in_no_record_with_images(records):
    shown = [r for (name, _), found in records.items() if name != "text" for r in found]
    words = {word for record in shown for text in texts(record) for word in text.split()}
    assert not words & set(NEW_NAMES)
    assert len(words & set(SEEN_NAMES)) == 48
    in_text = {word for record in records["text", "train"] for word in record.text.split()}
    assert set(NEW_NAMES) <= in_text  # the language model knows them as words


def test_held_out_pairs_are_in_no_training_record(records):
    """No text names them, and no picture shows them.

    The metadata of pictures state their attributes, and pages show pictures of `captions`.
    """
    trained = [r for (_, split), found in records.items() if split == "train" for r in found]
    spoken = (text for record in trained for text in texts(record))
    named = {pair for text in spoken for pair in COMBINATION.findall(text)}
    assert len(named) == 56
    assert not any(scenes.is_held_out(COLOURS.index(c), SHAPES.index(s)) for c, s in named)
    for name in ("captions", "pairs", "videos"):
        for record in records[name, "train"]:
            assert not any(map(is_held_out, json.loads(record.metadata)["objects"]))


def is_held_out(thing: dict[str, str]) -> bool:
    return scenes.is_held_out(COLOURS.index(thing["colour"]), SHAPES.index(thing["shape"]))


def test_held_out_pictures_show_only_held_out_pairs(records):
    kinds = {True: 0, False: 0}
    for record in records["test_images", "test"]:
        metadata = json.loads(record.metadata)
        held_out = list(map(is_held_out, metadata["objects"]))
        assert all(held_out) if metadata["id"].startswith("test_held_out/") else not any(held_out)
        kinds[held_out[0]] += 1
    assert kinds == {
        True: REQUEST.size.test_held_out,
        False: REQUEST.size.test_one + REQUEST.size.test_two,
    }


def test_metadata_agree_with_captions(records):
    for record in records["captions", "train"]:
        described = [
            f"a {o['size']} {o['colour']} {o['shape']}"
            for o in json.loads(record.metadata)["objects"]
        ]
        assert record.text == " and ".join(described)


def test_same_request_gives_the_same_records(records, tmp_path):
    size = dataclasses.replace(REQUEST.size, pages=5, documents=5, pairs=5, videos=1, held_back=3)
    world.build(world.WorldRequest(seed=1, size=size), epath.Path(tmp_path))
    training = [(name, "train") for name in ("captions", "pairs", "pages", "text")]
    for name, split in [*training, ("test_images", "test")]:
        source = Source(tmp_path / name, split)
        assert [source[i] for i in range(5)] == records[name, split][:5]


def test_other_seed_gives_another_world(records):
    other = world.datasets(world.WorldRequest(seed=2, size=REQUEST.size))
    for name in (*WITH_IMAGES, "text"):
        assert next(iter(other[name][1]["train"]())) != records[name, "train"][0]


def test_mixes_decide_the_kinds_of_pages():
    mix = world.PageMix(binding=0.0, format=1.0, qa=0.0)
    request = world.WorldRequest(size=REQUEST.size, page_mix=mix)
    pages = world.datasets(request)["pages"][1]["train"]()
    assert all(text.startswith("output :") for _ in range(20) for text in next(pages).texts)


def test_world_json_describes_the_world(directory):
    found = json.loads((directory / "world.json").read_text())
    assert found["request"]["seed"] == 1
    assert found["new_names"] == list(NEW_NAMES)
    assert len(found["held_out"]) == 8
    assert "red triangle" in found["held_out"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("pages", 0, "pages is 0"), ("album", 257, "album=257 is more than one=256")],
)
def test_impossible_sizes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(REQUEST.size, **{field: value})
