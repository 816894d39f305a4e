"""Batch t of a dataset depends only on (seed, dataset, t), and corrupt records are replaced."""

import dataclasses
import hashlib
import logging
import re

import numpy as np
import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.data import mixture as mixture_lib
from flamingo_jax.data import rejected
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.rejected import BrokenDataset
from flamingo_jax.data.rows import RowMaker, TrainingRow, media_keys
from flamingo_jax.data.schema import Batch
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.data.tiny import CORRUPT, NUM_DOCUMENTS, NUM_PAGES, NUM_PAIRS, SIZE, page, solid


@pytest.fixture
def config(datasets) -> DataConfig:
    """One dataset of each kind; batches of 4 rows."""
    return DataConfig(
        tokenizer="",
        image_size=SIZE,
        datasets={
            "pages": DatasetConfig(
                "interleaved", str(datasets / "pages"), batch_size=4, length=16, max_images=2
            ),
            "pairs": DatasetConfig("pairs", str(datasets / "pairs"), batch_size=4, length=8),
            "captions": DatasetConfig("captions", str(datasets / "pairs"), batch_size=4, length=8),
            "videos": DatasetConfig(
                "pairs", str(datasets / "videos"), batch_size=4, length=8, num_frames=2
            ),
            "files": DatasetConfig(
                "pairs", str(datasets / "files"), batch_size=4, length=8, num_frames=2
            ),
            "text": DatasetConfig(
                "text", str(datasets / "documents"), batch_size=4, length=12, documents_per_row=3
            ),
        },
    )


def only(config: DataConfig, name: str, **changes) -> DataConfig:
    """The config with one dataset, changed."""
    return dataclasses.replace(
        config, datasets={name: dataclasses.replace(config.datasets[name], **changes)}
    )


def arrays(batch: Batch) -> dict[str, np.ndarray]:
    names = [field.name for field in dataclasses.fields(batch) if field.name != "chunks"]
    return {name: getattr(batch, name) for name in names}


def digest(*batches: Batch) -> str:
    joined = [
        np.concatenate(parts) for parts in zip(*(arrays(b).values() for b in batches), strict=True)
    ]
    return hashlib.sha256(b"".join(a.tobytes() for a in joined)).hexdigest()


NAMES = ("pages", "pairs", "captions", "videos", "files", "text")


@pytest.mark.parametrize("name", NAMES)
def test_one_two_and_four_processes_read_the_same_global_batch(config, words, name):
    read = {}
    for count in (1, 2, 4):
        mixtures = [
            Mixture(
                # Other datasets in the mixture change nothing.
                config if count == 1 else only(config, name),
                seed=5,
                tokenizer=words,
                num_shards=4,
                process_index=p,
                process_count=count,
                cache_bytes=0 if count == 2 else 1 << 20,  # memory changes nothing, too
            )
            for p in range(count)
        ]
        for p, mixture in enumerate(mixtures):
            assert len(mixture.batch(name, 0).tokens) == 4 // count, p
        read[count] = [digest(*(mixture.batch(name, t) for mixture in mixtures)) for t in (0, 3, 1)]
    assert read[1] == read[2] == read[4]
    assert len(set(read[1])) == 3


def test_reading_resumes_anywhere(config, words):
    mixture = Mixture(config, seed=5, tokenizer=words)
    start = {"pages": 2, "text": 7, "pairs": 0, "files": 1}
    batches = mixture.iterate(start)
    again = Mixture(config, seed=5, tokenizer=words)
    for step in range(6):
        read = next(batches)
        assert read.keys() == start.keys()
        for name, t in start.items():
            assert digest(read[name]) == digest(again.batch(name, t + step)), (name, step)
    batches.close()


def test_threads_and_prefetching_change_nothing(config, words):
    read = set()
    for threads, prefetch in ((1, 1), (4, 8)):
        changed = dataclasses.replace(config, num_threads=threads, prefetch=prefetch)
        stream = Mixture(changed, seed=5, tokenizer=words).iterate({"pages": 0, "files": 0})
        read.add(tuple(digest(batch) for _ in range(5) for batch in next(stream).values()))
        stream.close()
    assert len(read) == 1


def keys(batch: Batch, rows: range = range(4)) -> list[tuple[int, int]]:
    """The keys of the visual inputs of some rows, in order, in a batch of one shard."""
    slots = batch.media_slot[rows]
    return [tuple(key) for key in batch.media_key[slots[slots >= 0]].tolist()]


def test_each_visual_input_has_another_key(config, words):
    """The key depends on seed, dataset, position and number, but not on shards and processes.

    It is different at each visit.
    """
    mixture = Mixture(config, seed=5, tokenizer=words)
    seen = [
        key
        for name in ("pages", "pairs", "files")
        for t in range(8)
        for key in keys(mixture.batch(name, t))
    ]
    seen += [
        key
        for t in range(2)
        for key in keys(Mixture(config, seed=6, tokenizer=words).batch("pairs", t))
    ]
    assert len(set(seen)) == len(seen) > 80
    for t in range(3):
        whole = mixture.batch("pages", t)
        halves = Mixture(config, seed=5, tokenizer=words, num_shards=2).batch("pages", t)
        pool = len(halves.frames) // 2
        own = [key for half in (0, 1) for key in keys(_half(halves, half, pool), range(2))]
        assert own == keys(whole)
        used = whole.frame_mask.any(axis=1)
        assert used.sum() == len(own)
        assert not whole.media_key[~used].any()


def _half(batch: Batch, half: int, pool: int) -> Batch:
    return dataclasses.replace(
        batch,
        media_slot=batch.media_slot[2 * half :][:2],
        media_key=batch.media_key[pool * half :][:pool],
    )


def test_keys_are_those_of_earlier_versions():
    """A literal: a new version must not change the augmentation of a run."""
    found = media_keys((5, 77), np.array([0, 0, 3]), np.array([0, 1, 0]))
    assert found.tolist() == [
        [901855851, 1859788010],
        [3567790055, 4187486832],
        [3313789975, 1474861844],
    ]


def test_an_error_of_a_reading_thread_arrives(config, words):
    mixture = Mixture(only(config, "pages", pool=2), seed=5, tokenizer=words)
    with pytest.raises(ValueError, match="more than the 2 that the pool"):
        for _ in zip(range(20), mixture.iterate({"pages": 0}), strict=False):
            pass


def numbers(batch: Batch, words) -> list[int]:
    """The numbers of the documents, pairs or pages of a batch, from their first word."""
    found = [words.decode(row[row < words.vocab_size]).split()[:1] for row in batch.tokens]
    return [int(word[0][1:]) for word in found if word]


def test_each_epoch_has_every_record_once_in_its_own_order(config, words):
    config = only(config, "text", batch_size=1, documents_per_row=1)
    orders = {}
    for seed in (1, 2):
        mixture = Mixture(config, seed=seed, tokenizer=words)
        for epoch in (0, 1):
            ts = range(epoch * NUM_DOCUMENTS, (epoch + 1) * NUM_DOCUMENTS)
            orders[seed, epoch] = tuple(
                number for t in ts for number in numbers(mixture.batch("text", t), words)
            )
    for order in orders.values():
        assert sorted(order) == list(range(NUM_DOCUMENTS))
    assert len(set(orders.values())) == 4


def test_groups_of_rows_lose_no_text_and_are_the_same_for_every_reader(config, words):
    """17 documents of 3 to 7 tokens, in groups of three rows that have room for all their text."""
    grouped = only(config, "text", batch_size=12, length=32, documents_per_row=2, rows_per_group=3)
    whole = Mixture(grouped, seed=1, tokenizer=words).batch("text", 0)
    tokens = [
        row[:end] for row, end in zip(whole.tokens, (whole.segment > 0).sum(axis=1), strict=True)
    ]
    drawn = [np.concatenate(tokens[i : i + 3]) for i in range(0, 12, 3)]
    assert all(
        (group == words.bos_id).sum() == 6 == (group == words.eos_id).sum() for group in drawn
    )
    parts = [
        Mixture(
            grouped, seed=1, tokenizer=words, process_index=p, process_count=4, num_shards=4
        ).batch("text", 0)
        for p in range(4)
    ]
    for name in ("tokens", "segment", "loss_weights"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
        )
    halves = only(config, "text", batch_size=4, length=32, documents_per_row=2, rows_per_group=3)
    mixture = Mixture(halves, seed=1, tokenizer=words)  # batches end inside a group
    again = np.concatenate([mixture.batch("text", t).tokens for t in range(3)])
    np.testing.assert_array_equal(again, whole.tokens)


def test_the_order_is_that_of_earlier_versions(config, words):
    """A restarted process and a new version of a library must not change the order of a run."""
    mixture = Mixture(
        only(config, "text", batch_size=6, documents_per_row=1), seed=1, tokenizer=words
    )
    assert numbers(mixture.batch("text", 0), words) == [1, 14, 12, 16, 11, 2]
    assert numbers(mixture.batch("text", 2), words) == [7, 9, 8, 15, 13, 7]


def test_the_name_and_the_seed_decide(config, words, datasets):
    same = config.datasets["pairs"]
    config = dataclasses.replace(config, datasets={"pairs": same, "others": same})
    first, second = (Mixture(config, seed=seed, tokenizer=words) for seed in (1, 2))
    digests = [digest(m.batch(name, 0)) for m in (first, second) for name in ("pairs", "others")]
    assert len(set(digests)) == 4


def test_pages_bring_their_own_images(config, words):
    """The text that attends an image names it: image i of page k is grey 10 * k + i.

    Its text begins with the words wk ii.
    """
    mixture = Mixture(only(config, "pages", p_next=0.0), seed=5, tokenizer=words, num_shards=2)
    seen = 0
    for t in range(6):
        batch = mixture.batch("pages", t)
        pool = len(batch.frames) // 2
        for row in range(4):
            for image in range(1, 3):
                attending = batch.tokens[row][batch.media_index[row] == image]
                text = words.decode(attending).replace("<EOC>", " ").split()
                if not text:
                    continue
                assert text[0].startswith("<image>w")
                grey = 10 * int(text[0].removeprefix("<image>w")) + int(text[1][1:])
                slot = batch.media_slot[row, image - 1] + row // 2 * pool
                np.testing.assert_array_equal(batch.frames[slot, 0], solid(grey))
                seen += 1
    assert seen > 12
    assert {len(page(k).images) for k in range(NUM_PAGES)} == {0, 1, 2, 3}


def test_weights_and_segments(config, words):
    mixture = Mixture(config, seed=5, tokenizer=words)
    for name in NAMES:
        batch = mixture.batch(name, 1)
        np.testing.assert_array_equal(batch.tokens == words.pad_id, batch.segment == 0)
        predicted = (batch.tokens != words.pad_id) & (batch.tokens != words.bos_id)
        np.testing.assert_array_equal(batch.loss_weights, predicted)
        assert batch.segment[:, 0].min() == 1
    text = mixture.batch("text", 1)
    starts = text.tokens == words.bos_id
    np.testing.assert_array_equal(
        np.cumsum(starts, axis=1)[text.segment > 0], text.segment[text.segment > 0]
    )
    assert text.frames.shape == (0, 1, SIZE, SIZE, 3)
    assert text.media_slot.shape == (4, 0)
    pairs = mixture.batch("pairs", 1)
    np.testing.assert_array_equal(pairs.media_index, pairs.segment)  # phi = 1 everywhere
    captions = mixture.batch("captions", 1)
    assert not captions.media_index.any()
    np.testing.assert_array_equal(captions.media_slot[:, 0], np.arange(4))


def test_space_prefix_of_pairs(config, pieces):
    for probability, expected in ((0.0, {False}), (0.5, {False, True}), (1.0, {True})):
        mixture = Mixture(
            only(config, "pairs", space_prefix=probability, length=64), seed=5, tokenizer=pieces
        )
        rows = np.concatenate([mixture.batch("pairs", t).tokens for t in range(4)])
        texts = [pieces.decode(row).removeprefix("<image>") for row in rows]
        assert {text.startswith(" ") for text in texts} == expected


def test_clips_of_videos(config, words):
    """2 frames per second are stored and 1 per second is used: frames f and f + 2.

    A short video has one frame.
    """
    mixture = Mixture(config, seed=5, tokenizer=words)
    lengths = set()
    for t in range(5):
        batch = mixture.batch("videos", t)
        for row, video in enumerate(numbers(batch, words)):
            clip, mask = batch.frames[row, :, 0, 0, 0].astype(int), batch.frame_mask[row]
            lengths.add(int(mask.sum()))
            assert mask.tolist() == [True, video >= 2]
            assert 20 * video <= clip[0] <= 20 * video + max(video - 2, 0) or video < 2
            assert clip[1] == (clip[0] + 2 if video >= 2 else 0)
    assert lengths == {1, 2}


def test_clips_of_video_files(config, words):
    """The same videos as files of 2 frames per second; the codec changes their greys a little."""
    mixture = Mixture(config, seed=5, tokenizer=words)
    lengths = set()
    for t in range(4):
        batch = mixture.batch("files", t)
        for row, video in enumerate(numbers(batch, words)):
            clip, mask = batch.frames[row, :, 4, 4, 0].astype(int), batch.frame_mask[row]
            lengths.add(int(mask.sum()))
            assert mask.tolist() == [True, video >= 2]
            assert 20 * video - 3 <= clip[0] <= 20 * video + 10 * max(video - 2, 0) + 3
            # Two frames further, with ten grey levels from frame to frame.
            assert not mask[1] or abs(clip[1] - clip[0] - 20) <= 4
    assert lengths == {1, 2}


def test_the_record_at_a_position(config, words):
    mixture = Mixture(config, seed=5, tokenizer=words)
    for name in ("pairs", "text"):
        share = 1 if name == "pairs" else 3
        found = numbers(mixture.batch(name, 1), words)
        stored = [mixture.record(name, (4 + row) * share).text for row in range(4)]
        assert [int(text.split()[0][1:]) for text in stored] == found
    assert all(
        mixture.record("pairs", position).text != f"w{CORRUPT} a" for position in range(NUM_PAIRS)
    )


def test_the_records_of_a_batch_are_named(config, words):
    """Also those of other readers; of packed text all documents that were candidates."""
    mixture = Mixture(
        config, seed=5, tokenizer=words, process_index=1, process_count=2, num_shards=2
    )
    for name, share in (("pairs", 1), ("text", 3)):
        dataset = config.datasets[name]
        words_of_it = mixture.origin(name, 1)
        found = re.fullmatch(r"records ([\d, ]+) of (.*) \(train\), in (\S+)", words_of_it)
        assert found and found[2] == dataset.path, words_of_it
        source = Source(dataset.path)
        named = [source[int(index)].text for index in found[1].split(", ")]
        good = [text for text in named if text != f"w{CORRUPT} a"]
        size = dataset.batch_size * share
        read = [mixture.record(name, size + i).text for i in range(size)]
        assert set(good) <= set(read) and 2 < len(named) <= size


def test_too_many_corrupt_records_stop_the_run(config, words, monkeypatch):
    """A share above the limit stops the run, but not the first few records. 1 of 14 is 7 %."""
    monkeypatch.setattr(rejected, "_ALWAYS_ALLOWED", 3)
    changed = only(config, "pairs", batch_size=14)
    mixture = Mixture(changed, seed=5, tokenizer=words)
    for t in range(3):
        mixture.batch("pairs", t)
    message = (
        r"'pairs': 4 of the \d+ records .*truncated_image 1\); "
        r"expected at most 5.0% \(data.max_corrupt\)"
    )
    with pytest.raises(BrokenDataset, match=message):
        mixture.batch("pairs", 3)
    lenient = Mixture(dataclasses.replace(changed, max_corrupt=0.1), seed=5, tokenizer=words)
    for t in range(8):
        lenient.batch("pairs", t)


def test_a_corrupt_record_is_replaced_and_counted_once(config, words, caplog):
    config = only(config, "pairs", batch_size=2)
    mixture = Mixture(config, seed=5, tokenizer=words)
    epoch = range(NUM_PAIRS // 2)
    with caplog.at_level(logging.WARNING):
        first = [number for t in epoch for number in numbers(mixture.batch("pairs", t), words)]
        for t in range(NUM_PAIRS // 2, NUM_PAIRS):
            mixture.batch("pairs", t)
    assert sorted(first) == sorted([*(set(range(NUM_PAIRS)) - {CORRUPT}), CORRUPT + 1])
    assert mixture.rejected == {"pairs": {"truncated_image": 1}}
    assert [f"record {CORRUPT} is skipped" in message for message in caplog.messages] == [True]
    again = Mixture(config, seed=5, tokenizer=words, cache_bytes=0)
    at = first.index(CORRUPT + 1) // 2
    assert digest(again.batch("pairs", at)) == digest(mixture.batch("pairs", at))


def test_nothing_but_corrupt_records_is_an_error(config, words, datasets):
    config = only(config, "captions", path=str(datasets / "corrupt"))
    mixture = Mixture(config, seed=5, tokenizer=words)
    with pytest.raises(
        ValueError, match=r"'captions': 3 records of .*corrupt in a row, .* are corrupt"
    ):
        mixture.batch("captions", 0)
    assert mixture.rejected == {"captions": {"not_an_image": 3}}


def test_a_pool_that_is_too_small_is_an_error(config, words):
    mixture = Mixture(only(config, "pages", pool=2), seed=5, tokenizer=words, num_shards=2)
    roomy = Mixture(config, seed=5, tokenizer=words, num_shards=2)
    for t in range(4):
        # The visual inputs of each data shard.
        needed = (roomy.batch("pages", t).media_slot >= 0).reshape(2, -1).sum(axis=1)
        if needed.max() <= 2:
            mixture.batch("pages", t)
            continue
        shard = 0 if needed[0] > 2 else 1
        with pytest.raises(
            ConfigError,
            match=f"batch {t} of dataset 'pages': its 2 rows of data shard {shard} .* have "
            f"{needed[shard]} visual inputs, more than the 2 .* to {needed[shard]} or more, .* 4,",
        ):
            mixture.batch("pages", t)


@pytest.mark.parametrize("name", ["pages", "videos", "text"])
def test_a_chunk_has_its_part_of_the_pool(config, words, name):
    """Rows, pixels and keys are those of the whole batch; each chunk's pool begins with its own."""
    whole = Mixture(config, seed=5, tokenizer=words).batch(name, 1)
    halves = Mixture(only(config, name, chunks=2), seed=5, tokenizer=words).batch(name, 1)
    shards = Mixture(config, seed=5, tokenizer=words, num_shards=2).batch(name, 1)
    assert (whole.chunks, halves.chunks, shards.chunks) == (1, 2, 1)
    assert digest(halves) == digest(shards)  # a chunk is laid out like a data shard
    mixture = Mixture(only(config, name, chunks=2), seed=5, tokenizer=words, num_shards=2)
    quarters = mixture.batch(name, 1)
    np.testing.assert_array_equal(quarters.tokens, whole.tokens)
    capacity = len(whole.frames) // 4
    for row, n in np.argwhere(whole.media_slot >= 0):
        slot = row * capacity + quarters.media_slot[row, n]  # each of the four chunks has a row
        for array in ("frames", "frame_mask", "media_key"):
            expected = getattr(whole, array)[whole.media_slot[row, n]]
            np.testing.assert_array_equal(getattr(quarters, array)[slot], expected)


def test_a_pool_that_is_too_small_for_a_chunk_is_an_error(config, words):
    changes = {"chunks": 2, "pool": 4}
    mixture = Mixture(only(config, "pages", **changes), seed=5, tokenizer=words)
    needed = (Mixture(config, seed=5, tokenizer=words).batch("pages", 0).media_slot >= 0).sum(1)
    chunk, need = next((c, n) for c, n in enumerate(needed.reshape(2, 2).sum(1)) if n > 2)
    with pytest.raises(
        ConfigError,
        match=f"its 2 rows of chunk {chunk} of data shard 0 .* have {need} visual inputs, more "
        f"than the 2 .* to {2 * need} or more, or to None for 8,",
    ):
        mixture.batch("pages", 0)


def test_one_record_is_a_dataset(config, words, datasets):
    mixture = Mixture(only(config, "pages", split="train[:1]"), seed=5, tokenizer=words)
    assert mixture.sizes == {"pages": 1}
    assert numbers(mixture.batch("pages", 3), words) == [0] * 4


def test_the_pool_holds_real_images_only(config, words):
    roomy = Mixture(config, seed=5, tokenizer=words).batch("pages", 0)
    tight = Mixture(only(config, "pages", pool=7), seed=5, tokenizer=words).batch("pages", 0)
    assert len(roomy.frames) == 8
    assert len(tight.frames) == 7
    np.testing.assert_array_equal(roomy.frames[:7], tight.frames)
    assert tight.frame_mask.sum() == (tight.media_slot >= 0).sum()


@pytest.mark.parametrize(
    ("name", "changes", "options", "message"),
    [
        (
            "pages",
            {"kind": "pairs"},
            {},
            "'pages' is of kind 'pairs', which takes image_text or video_text or .*, but .*page",
        ),
        (
            "pages",
            {"batch_size": 3},
            {"num_shards": 2},
            "batch_size 3 cannot be split evenly over 2",
        ),
        (
            "pages",
            {},
            {"num_shards": 3, "process_count": 2},
            "Process 0 of 2 cannot read for 3 data shards",
        ),
        ("pages", {}, {"num_shards": 2, "process_count": 2, "process_index": 2}, "Process 2 of 2"),
        ("pages", {"chunks": 4}, {"num_shards": 2}, "chunks is 4, and a data shard has 2 row"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_start(config, words, name, changes, options, message):
    with pytest.raises(ValueError, match=message):
        Mixture(only(config, name, **changes), seed=5, tokenizer=words, **options)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pairs", {"pool": 3}, "pool is 3, and a data shard has 4 pairs .*; expected 4: leave it"),
        ("captions", {"pool": 5}, "pool is 5, and a data shard has 4 captions .*; expected 4"),
        ("pairs", {"length": 2}, "length is 2, and the first 2 .* nothing would be predicted"),
        ("pages", {"length": 2}, "length is 2, .* at least 3, .*datasets.pages.length=32"),
        ("text", {"batch_size": 5}, "batch_size 5 .* over 2 data .*datasets.text.batch_size=6"),
    ],
)
def test_a_dataset_that_cannot_be_learnt_from(config, words, name, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        shards = 2 if name == "text" else 1
        Mixture(only(config, name, **changes), seed=5, tokenizer=words, num_shards=shards)
    assert len(str(error.value).splitlines()) == 1


def test_a_dataset_without_text_is_an_error(config, words, monkeypatch):
    """The first text is enough; a record that is corrupt may have some."""
    monkeypatch.setattr(mixture_lib, "text_of", lambda record: " \n")
    for name in ("pages", "pairs", "captions", "text"):
        with pytest.raises(ConfigError, match=f"'{name}': the first .* records .* have no text"):
            Mixture(only(config, name), seed=5, tokenizer=words)
    texts = iter([" ", "word"])
    monkeypatch.setattr(mixture_lib, "text_of", lambda record: next(texts))
    Mixture(only(config, "text"), seed=5, tokenizer=words)
    assert next(texts, None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 1}, "length is 1; expected a whole number from 2"),
        ({"weight": -1.0}, "weight is -1.0; expected a number from 0"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1"),
        ({"p_next": 1.5}, "p_next is 1.5; expected a number from 0 to 1"),
        ({"pool": 0}, "pool is 0; expected .*, or None"),
    ],
)
def test_nonsense_in_the_config_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        only(config, "pages", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"max_corrupt": 1.5}, "max_corrupt is 1.5; expected a number from 0 to 1"),
    ],
)
def test_nonsense_for_the_loader_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def training_row(tokens: list[int], segment: list[int]) -> TrainingRow:
    no_image = np.zeros(len(tokens), np.int32)
    return TrainingRow(np.array(tokens, np.int32), np.array(segment, np.int32), no_image)


def test_one_piece_for_begin_and_end_is_predicted_at_the_end(words, tmp_path):
    """As in GPT-2's vocabulary: the row starts with this piece, and both documents end with it."""

    class OnePiece(SentencePieceTokenizer):
        bos_id = SentencePieceTokenizer.eos_id

    words.save(tmp_path)
    tokenizer = OnePiece.load(tmp_path)
    end = tokenizer.eos_id
    row = training_row([end, 5, end, end, 6, end], [1, 1, 1, 2, 2, 2])
    config = DatasetConfig("text", "", batch_size=1, length=8)
    maker = RowMaker(config, tokenizer, image_size=1)
    made = maker.collate([row], num_shards=1, stream=(0, 0), first=0, where="batch")
    np.testing.assert_array_equal(made.loss_weights, [[0, 1, 1, 0, 1, 1, 0, 0]])


def test_without_bos_no_document_predicts_the_first_token_of_the_next(words):
    """As in models with sequences that begin with the text."""
    words_alone = SentencePieceTokenizer(words._model, (), Markers(bos=False))
    row = training_row([5, 6, 2, 7, 8, 2], [1, 1, 1, 2, 2, 2])
    config = DatasetConfig("text", "", batch_size=1, length=8)
    maker = RowMaker(config, words_alone, image_size=1)
    made = maker.collate([row], num_shards=1, stream=(0, 0), first=0, where="batch")
    np.testing.assert_array_equal(made.loss_weights, [[0, 1, 1, 0, 1, 1, 0, 0]])
