"""How datasets share updates (paper, Table 3 (ii) and Table 11)."""

import dataclasses

import numpy as np
import pytest

from flamingo_jax.data import schema
from flamingo_jax.training.datasets_per_step import datasets_of_step, merge, positions_at

NAMES = ("pairs", "pages", "videos")


def test_accumulate_uses_every_dataset_at_every_step():
    assert datasets_of_step("accumulate", NAMES, 5) == ["pages", "pairs", "videos"]
    assert positions_at("accumulate", NAMES, 5) == {"pages": 5, "pairs": 5, "videos": 5}


def test_round_robin_takes_turns():
    assert [datasets_of_step("round_robin", NAMES, step)[0] for step in range(4)] == [
        "pages",
        "pairs",
        "videos",
        "pages",
    ]


@pytest.mark.parametrize("mixing", ["accumulate", "round_robin", "merged"])
def test_positions_count_the_batches_used(mixing):
    used = dict.fromkeys(NAMES, 0)
    for step in range(8):
        assert positions_at(mixing, NAMES, step) == used
        for name in datasets_of_step(mixing, NAMES, step):
            used[name] += 1


def batch(rows, length, images, frames, pool, fill):
    """Returns a batch of two shards; the image of every row is the last of its shard's pool."""
    slot = np.full((rows, images), -1, np.int32)
    slot[:, 0] = pool // 2 - 1
    ones = np.ones((rows, length), np.int32)
    pixels = np.arange(pool, dtype=np.uint8) + np.uint8(10 * fill)
    return schema.Batch(
        tokens=ones * fill,
        segment=ones,
        loss_weights=np.ones((rows, length), np.float32),
        media_index=ones,
        media_slot=slot,
        frames=np.broadcast_to(pixels[:, None, None, None, None], (pool, frames, 2, 2, 3)),
        frame_mask=np.ones((pool, frames), bool),
        media_key=np.arange(2 * pool, dtype=np.uint32).reshape(pool, 2) + np.uint32(100 * fill),
    )


def test_merge_pads_and_keeps_each_shards_pool():
    pages = batch(rows=4, length=6, images=3, frames=1, pool=8, fill=1)
    pairs = batch(rows=2, length=4, images=1, frames=2, pool=2, fill=2)
    merged = merge({"pages": pages, "pairs": pairs}, {"pages": 1.0, "pairs": 0.5}, num_shards=2)
    schema.check(merged, num_shards=2)
    # Each shard has two pages and one pair.
    np.testing.assert_array_equal(merged.tokens[:, 0], [1, 1, 2, 1, 1, 2])
    np.testing.assert_array_equal(merged.segment[2], [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(merged.loss_weights[2], [0.5, 0.5, 0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(merged.media_slot[2], [4, -1, -1])
    np.testing.assert_array_equal(merged.frame_mask[:5].sum(axis=1), [1, 1, 1, 1, 2])
    capacity = merged.frames.shape[0] // 2
    # (row, the pixel of its image before the merge)
    for row, pixel in ((0, 13), (2, 20), (3, 17), (5, 21)):
        slot = row // 3 * capacity + merged.media_slot[row, 0]
        assert merged.frames[slot, 0, 0, 0, 0] == pixel
        key = 80 * (pixel // 10) + 2 * pixel
        assert merged.media_key[slot].tolist() == [key, key + 1]


def test_merge_keeps_each_chunks_pool():
    """A chunk of a merged batch is merged from the datasets' chunks, as data shards are."""
    batches = {
        "pages": batch(rows=4, length=6, images=3, frames=1, pool=8, fill=1),
        "pairs": batch(rows=2, length=4, images=1, frames=2, pool=2, fill=2),
    }
    weights = dict.fromkeys(batches, 1.0)
    by_shard = merge(batches, weights, num_shards=2)
    chunked = {name: dataclasses.replace(each, chunks=2) for name, each in batches.items()}
    by_chunk = merge(chunked, weights, num_shards=1)
    schema.check(by_chunk)
    for field in dataclasses.fields(schema.Batch):
        expected = 2 if field.name == "chunks" else getattr(by_shard, field.name)
        np.testing.assert_array_equal(getattr(by_chunk, field.name), expected)
