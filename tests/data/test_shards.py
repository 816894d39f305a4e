"""Files of records are complete or missing, on a file system and on an object store."""

import pytest

from flamingo_jax.core import paths
from flamingo_jax.data import shards
from flamingo_jax.data.schema import CorruptRecord, Document
from flamingo_jax.data.shards import Shard, ShardWriter, drop, shard_name, write_metadata, writing
from flamingo_jax.data.sources import Source


@pytest.fixture(params=["file system", "object store"])
def store(request, monkeypatch, tmp_path):
    """A directory. For an object store, files are made in another place and copied to it."""
    if request.param == "object store":
        for module in (paths, shards):
            monkeypatch.setattr(module, "is_local", lambda path: False)
    return tmp_path


def write(path, texts):
    with writing(path, "document") as writer:
        for text in texts:
            writer.write(Document(text))
    return writer.shard


def read(directory, split="train"):
    source = Source(directory, split)
    return [source[i].text for i in range(len(source))]


def test_shards_of_any_length_make_one_dataset(store):
    texts = (["a", "b", "c"], [], ["d"])
    parts = [write(store / shard_name("train", i, 3), each) for i, each in enumerate(texts)]
    assert [part.num_records for part in parts] == [3, 0, 1]
    assert parts[1] == Shard()
    write_metadata(store, "document", {"train": parts})
    assert read(store) == ["a", "b", "c", "d"]
    assert len(list(store.iterdir())) == 5


def test_a_renamed_directory_is_still_a_dataset(store):
    made = store / "made"
    made.mkdir()
    write_metadata(made, "document", {"train": [write(made / shard_name("train", 0, 1), ["a"])]})
    made.rename(store / "another-name")
    assert read(store / "another-name") == ["a"]


def test_dropped_records_are_gone_and_the_others_unchanged(store):
    file = store / shard_name("train", 0, 1)
    whole = write(file, list("abcde"))
    left = drop(file, {0, 3}, "document")
    write_metadata(store, "document", {"train": [left]})
    assert read(store) == ["b", "c", "e"]
    assert left.num_records == 3
    assert left.num_bytes * 5 == whole.num_bytes * 3


def test_what_is_no_example_is_a_corrupt_record(tmp_path):
    with writing(tmp_path / shard_name("train", 0, 1), "document") as writer:
        writer.write_example(b"\xff\x01 no example")
        writer.write(Document("fine"))
    write_metadata(tmp_path, "document", {"train": [writer.shard]})
    source = Source(tmp_path)
    with pytest.raises(CorruptRecord, match="Record 0 of"):
        source[0]
    assert source[1] == Document("fine")


def test_failure_keeps_what_was_there(store):
    file = store / shard_name("train", 0, 1)
    write(file, ["old"])
    before = file.read_bytes()
    with pytest.raises(RuntimeError), writing(file, "document") as writer:
        writer.write(Document("new"))
        raise RuntimeError
    assert file.read_bytes() == before
    assert [path.name for path in store.iterdir()] == [file.name]


def test_a_full_disk_is_one_error():
    """ArrayRecord raises RuntimeError, which programs print with a traceback."""
    writer = ShardWriter("/dev/full", "document")
    writer.write(Document("a text"))
    with pytest.raises(paths.PathError, match=r"Cannot write records: .*No space left.*with room"):
        writer.close()
