"""Records for a model that sees an image as tiles: batches have what its prompts have."""

import itertools

import numpy as np
import pytest

from data_pipelines.write_records import write_records
from flamingo_jax.core.config import ConfigError
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.images.tiles import cut
from flamingo_jax.data.mixture import Mixture
from flamingo_jax.data.schema import InterleavedPage
from flamingo_jax.inference.visuals import load_frames

TILE, TILES = 16, 4
SHAPES = [(16, 16), (12, 30), (60, 14), (40, 40), (9, 70), (1, 50)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A dataset of pages; page k has two pictures, of the shapes k and k + 1."""
    rng = np.random.default_rng(0)
    pictures = [encode_png(rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in SHAPES]
    made = [
        InterleavedPage((one, f"w{k} a", other, "b"))
        for k, (one, other) in enumerate(itertools.pairwise(pictures))
    ]
    directory = tmp_path_factory.mktemp("tiles") / "pages"
    write_records(directory, "interleaved_page", {"train": lambda: made})
    return directory


def config_of(path, kind="interleaved"):
    dataset = DatasetConfig(
        kind, str(path), batch_size=4, length=16, max_images=3, num_frames=TILES, p_next=0.0
    )
    return DataConfig("", TILE, {"shown": dataset}, background="white")


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_batches_have_the_tiles_and_the_numbers_of_prompts(pages, words, cache_bytes):
    mixture = Mixture(
        config_of(pages), seed=5, tokenizer=words, max_tiles=TILES, cache_bytes=cache_bytes
    )
    numbers = set()
    for t in range(3):
        batch = mixture.batch("shown", t)
        assert batch.frame_mask.dtype == np.int8
        for row in range(4):
            record = mixture.record("shown", 4 * t + row)
            for place, image in enumerate(record.images):
                slot = batch.media_slot[row, place]
                canvas = load_frames(image, TILE, background="white", max_tiles=TILES)[0]
                pixels, number = cut(canvas, TILE, TILES)
                expected = np.zeros_like(batch.frames[slot])
                expected[: len(pixels)] = pixels
                np.testing.assert_array_equal(batch.frames[slot], expected)
                real = [number] * len(pixels)
                assert batch.frame_mask[slot].tolist() == real + [0] * (TILES - len(pixels))
                numbers.add(number)
        assert not batch.frames[batch.frame_mask == 0].any()
        assert (batch.media_slot[:, 2] == -1).all()
    assert numbers == {1, 2, 4, 6, 8}


def test_videos_are_refused(datasets, words):
    with pytest.raises(ConfigError, match="holds video_text, and the model sees an image as tiles"):
        Mixture(config_of(datasets / "videos", "pairs"), seed=5, tokenizer=words, max_tiles=TILES)
