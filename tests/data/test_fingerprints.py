"""What changes the fingerprint of a dataset or a tokenizer, and what does not."""

import shutil

import pytest

from flamingo_jax.core.paths import PathError
from flamingo_jax.data import fingerprints
from flamingo_jax.data.fingerprints import Piece

SIZE = 5000


@pytest.fixture(params=["whole", "blocks"])
def dataset(request, tmp_path, monkeypatch):
    """Three shards of 5,000 bytes and their features, hashed whole or by blocks of 1,000."""
    if request.param == "blocks":
        monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 3 * SIZE - 1)
        monkeypatch.setattr(fingerprints, "BLOCK", 1000)
    for i in range(3):
        (tmp_path / f"shard-{i}").write_bytes(bytes([i]) * SIZE)
    (tmp_path / "features.json").write_text("{}")
    return tmp_path


def of(directory, counts=(7, 7, 7), firsts=(0, 0, 0)):
    shards = [Piece(f"shard-{i}", firsts[i], count) for i, count in enumerate(counts)]
    return fingerprints.of_dataset(directory, shards)


def test_a_copy_has_the_same_fingerprint(dataset, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "other"
    shutil.copytree(dataset, copy)
    assert of(copy) == of(dataset)
    assert (of(dataset)["count"], of(dataset)["bytes"]) == (21, 15000)


@pytest.mark.parametrize("place", [0, SIZE // 2, SIZE - 1])
def test_a_byte_in_a_shard_of_the_same_size_changes_its_hash_alone(dataset, place):
    before = of(dataset)
    content = bytearray((dataset / "shard-1").read_bytes())
    content[place] ^= 1
    (dataset / "shard-1").write_bytes(content)
    after = of(dataset)
    changed = [name for name in after["files"] if after["files"][name] != before["files"][name]]
    assert changed == ["shard-1"]
    assert after["bytes"] == before["bytes"]


def test_a_byte_between_the_blocks_of_a_large_shard_is_not_read(dataset):
    before = of(dataset)
    content = bytearray((dataset / "shard-1").read_bytes())
    content[1500] ^= 1
    (dataset / "shard-1").write_bytes(content)
    assert (of(dataset) == before) == (fingerprints.BLOCK == 1000)


def test_shards_that_changed_places_records_and_features_change_it(dataset):
    before = of(dataset)
    assert of(dataset, counts=(7, 7, 6)) != before
    assert of(dataset, firsts=(0, 1, 0)) != before
    (dataset / "features.json").write_text("{ }")
    assert of(dataset)["features"] != before["features"]
    (dataset / "features.json").write_text("{}")
    assert of(dataset) == before
    (dataset / "shard-0").rename(dataset / "x")
    (dataset / "shard-1").rename(dataset / "shard-0")
    (dataset / "x").rename(dataset / "shard-1")
    assert of(dataset) != before


def test_a_file_that_is_gone_is_named(dataset):
    (dataset / "shard-2").unlink()
    with pytest.raises(PathError, match=r"Cannot read .*shard-2: No such file"):
        of(dataset)


def test_two_slices_of_one_file_are_two_lines(dataset):
    shards = [Piece("shard-0", 0, 2), Piece("shard-0", 5, 1)]
    found = fingerprints.of_dataset(dataset, shards)
    assert list(found["files"]) == ["shard-0", "shard-0 from record 5"]


def test_many_shards_are_put_together_and_each_still_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_MOST_LINES", 4)
    shards = [Piece(f"shard-{i}", 0, 1) for i in range(10)]
    for shard in shards:
        (tmp_path / shard.name).write_bytes(b"x")
    before = fingerprints.of_dataset(tmp_path, shards)["files"]
    assert list(before) == [
        *("shard-0 to shard-2", "shard-3 to shard-5", "shard-6 to shard-8", "shard-9")
    ]
    (tmp_path / "shard-4").write_bytes(b"y")
    after = fingerprints.of_dataset(tmp_path, shards)["files"]
    assert [name for name in after if after[name] != before[name]] == ["shard-3 to shard-5"]


def test_each_file_that_a_tokenizer_reads_counts(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text("{}")
    before = fingerprints.of_tokenizer(tmp_path)
    assert set(before) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    (tmp_path / "README.md").write_text("is not read")
    assert fingerprints.of_tokenizer(tmp_path) == before
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert fingerprints.of_tokenizer(tmp_path) != before
    (tmp_path / "special_tokens_map.json").write_text("{}")
    (tmp_path / "prompt.json").write_text("{}")
    assert set(fingerprints.of_tokenizer(tmp_path)) - set(before) == {"prompt.json"}
