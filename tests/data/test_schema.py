"""Records are the same after storage, and an inconsistent batch is an error that names the row."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest

from flamingo_jax.data import schema
from flamingo_jax.data.answers import Conversation, ImageAnswers, VideoAnswers
from flamingo_jax.data.schema import (
    Batch,
    CorruptRecord,
    Document,
    ImageText,
    InterleavedPage,
    VideoText,
    check,
)

RECORDS = [
    InterleavedPage(("Grüße 🦩", b"\x89PNG\x00", b"\xff\xd8", "", "last"), '{"url": "x"}'),
    InterleavedPage(()),
    ImageText(b"\x00\x01", "a  caption\n", metadata="{}"),
    VideoText((b"1", b"2"), "moves", fps=2.5),
    VideoText((), "moves", video=b"mp4"),
    ImageAnswers(b"\x00\x01", ("Question: Is it? Answer:", "no", "Why? Answer:"), ("a", "a", "b")),
    VideoAnswers((b"1", b"2"), ("Output:",), ("moves",), fps=2.5),
    Conversation(((b"\x00", "What?", b"\x01"), ("Why?",)), ("A cat.", "Yes."), "{}"),
    Document("text"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind)
def test_record_survives_storage(record):
    features = schema.features(record.kind)
    example = features.encode_example(schema.to_example(record))
    stored = features.deserialize_example_np(features.serialize_example(example))
    assert schema.from_example(record.kind, stored) == record
    assert schema.kind_of(features.keys()) == record.kind


def test_page_keeps_the_order_of_its_parts():
    page = RECORDS[0]
    assert page.texts == ("Grüße 🦩", "", "last")
    assert page.images == (b"\x89PNG\x00", b"\xff\xd8")
    assert list(schema.to_example(page)["order"]) == [0, 1, 1, 0, 0]


def test_inconsistent_records_are_corrupt():
    example = schema.to_example(RECORDS[0])
    with pytest.raises(CorruptRecord, match="1 images and 3 texts are stored"):
        schema.from_example("interleaved_page", {**example, "images": [b"x"]})
    with pytest.raises(CorruptRecord, match="UnicodeDecodeError") as found:
        schema.from_example("document", {"text": b"\xff", "metadata": b""})
    # Also if the error comes from another process.
    assert pickle.loads(pickle.dumps(found.value)).reason == "broken_text"
    with pytest.raises(CorruptRecord, match="KeyError"):
        schema.from_example("document", {"text": b"x"})


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="'audio'.*document"):
        schema.features("audio")
    with pytest.raises(ValueError, match="no known kind"):
        schema.kind_of(["text", "sound"])


def batch(**changes) -> Batch:
    """Two shards of two rows; L = 3, N = 2, a pool of 2 per shard."""
    good = Batch(
        tokens=np.array([[1, 5, 6]] * 4, np.int32),
        segment=np.array([[1, 1, 1]] * 3 + [[1, 1, 0]], np.int32),
        loss_weights=np.array([[0, 1, 1]] * 3 + [[0, 1, 0]], np.float32),
        media_index=np.array([[0, 1, 2], [0, 0, 0], [0, 1, 1], [0, 1, 0]], np.int32),
        media_slot=np.array([[0, 1], [-1, -1], [0, -1], [1, -1]], np.int32),
        frames=np.zeros((4, 1, 2, 2, 3), np.uint8),
        frame_mask=np.ones((4, 1), bool),
        media_key=np.zeros((4, 2), np.uint32),
    )
    for name, (where, value) in changes.items():
        array = getattr(good, name).copy()
        array[where] = value
        good = dataclasses.replace(good, **{name: array})
    return good


def test_good_batches_pass_and_are_pytrees():
    check(batch(), num_shards=2)
    without_media = dataclasses.replace(
        batch(media_index=(..., 0)),
        media_slot=np.zeros((4, 0), np.int32),
        frames=np.zeros((0, 1, 2, 2, 3), np.uint8),
        frame_mask=np.zeros((0, 1), bool),
        media_key=np.zeros((0, 2), np.uint32),
    )
    check(without_media, num_shards=2)
    doubled = jax.tree.map(lambda x: x, batch())
    assert isinstance(doubled, Batch)
    assert len(jax.tree.leaves(doubled)) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"media_slot": ((0, 1), -1)},
            "row 0 has more <image> tags than images.*visual input 2, but the row has 1",
        ),
        ({"media_index": ((2, 1), 2)}, "row 2 has more <image> tags than images"),
        ({"media_slot": ((2, 0), 2)}, "row 2 .*slot 2, expected -1 .*less than 2"),
        ({"media_slot": ((1, 1), -2)}, "row 1 .*slot -2"),
        ({"media_index": ((3, 1), 3)}, "row 3, token 1 attends visual input 3, expected 0 .*to 2"),
        ({"media_index": ((3, 1), -1)}, "row 3, token 1 attends visual input -1"),
        ({"media_index": ((3, 2), 1)}, "row 3, token 2 has segment 0.*media index 1"),
        ({"loss_weights": ((3, 2), 1.0)}, "row 3, token 2 has segment 0, loss weight 1.0"),
        ({"loss_weights": ((1, 1), np.nan)}, "row 1, token 1 has loss weight nan"),
        ({"segment": ((1, 1), -1)}, "row 1, token 1 has segment -1"),
        ({"frame_mask": (3, False)}, "row 3, visual input 1 has no frame"),
    ],
)
def test_bad_batches_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^batch 7: .*{message}"):
        check(batch(**changes), num_shards=2, where="batch 7")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "segment",
            np.zeros((4, 2), np.int32),
            r"segment has shape \(4, 2\), expected \[B, L\] with {'B': 4, 'L': 3}",
        ),
        ("media_slot", np.zeros((3, 2), np.int32), r"media_slot has shape \(3, 2\)"),
        ("frames", np.zeros((4, 1, 2, 2, 1), np.uint8), r"frames has shape \(4, 1, 2, 2, 1\)"),
        ("frame_mask", np.zeros((4, 2), bool), r"frame_mask has shape \(4, 2\), expected \[M, F\]"),
        (
            "media_key",
            np.zeros((4, 1), np.uint32),
            r"media_key has shape \(4, 1\), expected \[M, 2\] with {'M': 4}",
        ),
        (
            "media_key",
            None,
            "media_key is a NoneType of no dtype, expected a numpy array of uint32",
        ),
        (
            "tokens",
            np.zeros((4, 3), np.int64),
            "tokens is a ndarray of int64, expected a numpy array of int32",
        ),
        ("tokens", [[1]], "tokens is a list of no dtype"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(name, array, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(batch(), **{name: array}))


def test_rows_must_split_over_the_shards():
    with pytest.raises(ValueError, match="4 rows and a pool of 4 do not split evenly over 3"):
        check(batch(), num_shards=3)
