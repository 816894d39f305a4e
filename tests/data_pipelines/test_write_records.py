"""Datasets of records: reading gives what was written, and a dataset is complete or absent."""

import pytest
from etils import epath

from data_pipelines.write_records import staged, write_records
from flamingo_jax.core.paths import PathError
from flamingo_jax.data.answers import Conversation, ImageAnswers, VideoAnswers
from flamingo_jax.data.schema import RECORDS, Document, ImageText, InterleavedPage, VideoText
from flamingo_jax.data.sources import Source

RECORDS_OF = {
    "interleaved_page": [
        InterleavedPage(("a", b"\x00png", "b"), "{}"),
        InterleavedPage((b"\xff", b"\x01", "c")),
    ],
    "image_text": [ImageText(b"\x00\xff", "ein Bär", '{"id": 1}'), ImageText(b"", "")],
    "video_text": [VideoText((b"1", b"22"), "two", fps=2.0), VideoText((), "none", video=b"mp4")],
    "document": [Document("first"), Document("second\nline", "{}")],
    "image_answers": [
        ImageAnswers(b"\x00\xff", ("wer?", "er", "wo?"), ("hier", "dort"), '{"id": 1}'),
        ImageAnswers(b"", ("",), ("",)),
    ],
    "conversation": [
        Conversation(((b"\x00", "was?", b"\xff"), ("wo?",)), ("das", "hier"), '{"id": 1}'),
        Conversation((("a",),), ("b",)),
    ],
    "video_answers": [
        VideoAnswers((b"1", b"22"), ("was?",), ("ein Bär",), fps=2.0),
        VideoAnswers((), ("was?",), ("nichts",), video=b"mp4"),
    ],
}


@pytest.mark.parametrize("kind", RECORDS)
def test_records_of_every_kind_come_back_in_order(kind, tmp_path):
    records = RECORDS_OF[kind]
    splits = {"train": lambda: iter(records * 3), "test": lambda: records[:1]}
    counts = write_records(tmp_path / "set", kind, splits)
    assert counts == {"train": 6, "test": 1}
    train = Source(tmp_path / "set", "train")
    assert train.kind == kind
    assert [train[i] for i in range(len(train))] == records * 3
    assert [Source(tmp_path / "set", "test")[0]] == records[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_failure_leaves_nothing_behind(tmp_path):
    def broken():
        yield Document("fine")
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        write_records(tmp_path / "set", "document", {"train": broken})
    assert not list(tmp_path.iterdir())


def test_the_remains_of_a_killed_run_are_removed(tmp_path):
    left = tmp_path / ".set.dataset.incomplete"
    (left / "set").mkdir(parents=True)
    (left / "set" / "set-train.array_record-00000-of-00001").write_bytes(b"half")
    write_records(tmp_path / "set", "document", {"train": lambda: [Document("x")]})
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(Source(tmp_path / "set", "train")) == 1


def test_existing_directory_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        write_records(tmp_path / "set", "document", {"train": lambda: [Document("x")]})


def test_wrong_kind_is_refused(tmp_path):
    mixed = {"train": lambda: [Document("x"), ImageText(b"", "")]}
    message = "Record 1 of this file: got a ImageText, expected Document"
    with pytest.raises(TypeError, match=message):
        write_records(tmp_path / "set", "document", mixed)
    assert not list(tmp_path.iterdir())


def test_empty_split_is_refused(tmp_path):
    splits = {"train": lambda: [Document("x")], "test": list}
    with pytest.raises(ValueError, match="split 'test' has no records"):
        write_records(tmp_path / "set", "document", splits)
    assert not list(tmp_path.iterdir())


def test_object_store_is_refused():
    with pytest.raises(ValueError, match="write locally, then copy"):
        write_records("gs://bucket/set", "document", {"train": lambda: [Document("x")]})


def test_two_runs_do_not_make_the_same_target(tmp_path):
    """The second one does not remove what the first one has written so far."""
    target = epath.Path(tmp_path / "data")
    refused = pytest.raises(PathError, match="Another run writes to .*data.incomplete now")
    with staged(target) as staging:
        (staging / "part").write_text("half")
        with refused, staged(target):
            pass
        assert (staging / "part").read_text() == "half"
    assert not list(tmp_path.iterdir())
