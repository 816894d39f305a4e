"""Records by number, kept in memory while there is room."""

import os
from pathlib import Path

import numpy as np
import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import PathError
from flamingo_jax.data import sources
from flamingo_jax.data.images import read
from flamingo_jax.data.rejected import BrokenDataset
from flamingo_jax.data.schema import CorruptRecord, Document, ImageText
from flamingo_jax.data.sources import EncodedImages, Examples, Room, Source
from tests.data.tiny import CORRUPT, NUM_DOCUMENTS, NUM_PAIRS, SIZE, page, solid


def test_records_by_number(datasets):
    source = Source(datasets / "pages")
    assert source.kind == "interleaved_page"
    assert source[7] == page(7)
    pairs = Source(datasets / "pairs", "test")
    assert (pairs.kind, len(pairs), pairs[0]) == ("image_text", 1, ImageText(b"x", "w0"))
    assert len(Source(datasets / "pairs", "train[:50%]")) == NUM_PAIRS // 2


def test_missing_datasets_and_splits_are_named(datasets):
    with pytest.raises(FileNotFoundError, match="no dataset at .*nothing"):
        Source(datasets / "nothing")
    with pytest.raises(ValueError, match="split 'dev' of .*documents.*{'train': 17}"):
        Source(datasets / "documents", "dev")


@pytest.mark.parametrize("split", ["dev", "", "train[", "train[:x]", "train[5:2]", "train[:0]"])
def test_a_split_without_records_is_one_line(datasets, split):
    with pytest.raises(ConfigError) as error:
        Source(datasets / "documents", split)
    assert str(error.value).startswith(f"Cannot read split {split!r} of ")
    assert str(error.value).endswith("The dataset has {'train': 17}.")
    assert len(str(error.value).splitlines()) == 1


def damaged(source: Path, target: Path, change) -> Path:
    """Copies a dataset and changes its ArrayRecord file by a function of its bytes.

    If the function returns None, the file is left out.
    """
    target.mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        content = change(content) if "array_record" in file.name else content
        if content is not None:
            (target / file.name).write_bytes(content)
    return target


def test_a_missing_file_is_named(datasets, tmp_path):
    directory = damaged(datasets / "documents", tmp_path / "copy", lambda content: None)
    message = "lacks 1 of its 1 files, the first of them records-train.array_record-00000"
    with pytest.raises(FileNotFoundError, match=message):
        Source(directory)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "records"])
def test_a_pipe_in_the_place_of_a_file_is_not_opened(datasets, tmp_path, name):
    directory = damaged(datasets / "documents", tmp_path / "copy", lambda content: content)
    (file,) = directory.glob(f"*{name}*")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(PathError, match=rf"Cannot read .*{name}.* it is a pipe"):
        Source(directory)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: (
            content[: len(content) // 2] + b"U" * 300 + content[len(content) // 2 + 300 :]
        ),
    ],
    ids=["half", "no_end", "empty", "zeros", "middle"],
)
def test_a_damaged_file_never_crashes_and_is_named(datasets, tmp_path, change):
    source = Source(damaged(datasets / "documents", tmp_path / "copy", change))
    failed = 0
    for index in range(NUM_DOCUMENTS):
        try:
            assert isinstance(source[index], Document)
        except CorruptRecord as error:
            failed += 1
            assert error.reason == "corrupt_record"
            message = str(error)
            named = "records-train.array_record-00000" in message
            assert named or "stored document cannot be read" in message
    assert failed


def test_a_damaged_chunk_is_a_corrupt_record(datasets, tmp_path):
    def flip_a_bit(content):
        assert b"w7" in content
        return content.replace(b"w7", b"w\xc8", 1)

    damaged(datasets / "documents", tmp_path / "copy", flip_a_bit)
    source = Source(tmp_path / "copy")
    readable = []
    for index in range(NUM_DOCUMENTS):
        try:
            readable.append(source[index])
        except CorruptRecord as error:
            assert f"Record {index} of {tmp_path / 'copy'} (train), in records-train" in str(error)
    assert len(readable) == NUM_DOCUMENTS - 1
    assert all(isinstance(record, Document) and "w7" not in record.text for record in readable)


def test_images_are_decoded_once_if_there_is_room(monkeypatch):
    decoded = []
    exact = read.decode_inner
    monkeypatch.setattr(
        read, "decode_inner", lambda *arguments: decoded.append(1) or exact(*arguments)
    )
    encoded = [read.encode_png(solid(k)) for k in range(3)]
    more = [SIZE * SIZE * 3 - len(image) for image in encoded]  # bytes that decoding adds
    for room, times in ((Room(more[0] + more[1]), 4), (Room(0), 6), (None, 6)):
        decoded.clear()
        record = EncodedImages(encoded, SIZE)
        if room:
            record.keep_in(room)
        for _ in range(2):
            for k in range(3):
                np.testing.assert_array_equal(record[k], solid(k))
        assert len(decoded) == times


def test_examples_are_prepared_once_if_there_is_room(datasets):
    class Prepared:
        num_bytes = 10

        def __init__(self, record):
            prepared.append(record.text)

        def keep_in(self, room):
            assert room.take(0)

    prepared: list[str] = []
    examples = Examples(Source(datasets / "documents"), Prepared, 25)  # room for two
    for _ in range(2):
        for index in (4, 5, 6):
            assert isinstance(examples[index], Prepared)
    assert len(prepared) == 4
    assert len(examples) == NUM_DOCUMENTS


def test_corrupt_images_are_an_error_on_access(datasets):
    record = Source(datasets / "pairs")[CORRUPT]
    with pytest.raises(CorruptRecord):
        EncodedImages([record.image], SIZE)[0]


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": "b', b"[]", bytes(100), b'{"name": "mnist"}', b"[" * 100_000, None],
)
def test_damaged_metadata_are_one_error(datasets, tmp_path, file, content):
    directory = damaged(datasets / "documents", tmp_path / "copy", lambda content: content)
    (directory / file).unlink() if content is None else (directory / file).write_bytes(content)
    with pytest.raises((BrokenDataset, FileNotFoundError), match=r"dataset at .*copy"):
        Source(directory)


def test_a_file_that_cannot_be_opened_is_no_corrupt_record(datasets):
    """Else a limit of open files, or a broken disk, would leave records out as corrupt ones."""
    source = Source(datasets / "documents")

    class Records:
        def __getitem__(self, index):
            raise RuntimeError("open() failed: Too many open files; opening /a/b-00060-of-00200")

    source._records = Records()
    with pytest.raises(
        PathError, match=r"Cannot open records-train.*Too many open files.*ulimit -n"
    ):
        source[0]


@pytest.mark.parametrize(
    ("limits", "files", "wanted"),
    [
        ((1024, 4096), 200, (1224, 4096)),
        ((1024, 2000), 5000, (2000, 2000)),
        ((9000, 9000), 5, None),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may(monkeypatch, limits, files, wanted):
    asked = []
    monkeypatch.setattr(sources.resource, "getrlimit", lambda what: limits)
    monkeypatch.setattr(sources.resource, "setrlimit", lambda what, limit: asked.append(limit))
    sources._allow_open_files(files)
    assert asked == ([wanted] if wanted else [])
