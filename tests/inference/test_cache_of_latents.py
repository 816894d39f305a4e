"""The cache of latents: a visual is read and encoded once, a bounded number of frames at a time.

The visuals that it is encoded with make no difference.
"""

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.inference import cache_of_latents
from flamingo_jax.inference.cache_of_latents import Latents, Passes
from flamingo_jax.inference.visuals import Deferred, Image, PromptError, Video
from tests.inference import tiny


class Encoder:
    """Notes what it is given; a latent is the mean of the real frames, and how many there are."""

    def __init__(self):
        self.shapes, self.real = [], 0

    def __call__(self, frames, mask):
        self.shapes.append(frames.shape[:2])
        self.real += int(mask.any(axis=1).sum())
        assert not frames[~mask].any()
        count = mask.sum(axis=1)
        mean = frames.sum(axis=(1, 2, 3, 4)) / np.maximum(count, 1)
        return np.stack([mean, count], axis=1)[:, None].astype(np.float32)


def make(*, frames=4, multiple=1, megabytes=1, video_frames=3):
    encoder = Encoder()
    return encoder, Latents(
        encoder, Passes(16, video_frames, 3.0, frames, multiple), megabytes=megabytes
    )


def expected(visual):
    frames = visual if visual.ndim == 4 else visual[None]
    return [[frames.sum() / len(frames), len(frames)]]


IMAGES = [tiny.image(seed) for seed in range(6)]
VIDEO = np.stack(IMAGES[:2])


def test_each_visual_has_its_own_latents_in_order():
    encoder, latents = make()
    visuals = [IMAGES[0], VIDEO, *IMAGES[1:], IMAGES[0].copy()]
    np.testing.assert_allclose(latents(visuals), [expected(visual) for visual in visuals])
    assert encoder.real == 7  # six images and a video


def test_shapes_do_not_depend_on_what_is_encoded_together():
    encoder, latents = make()
    latents(IMAGES)
    assert encoder.shapes == [(4, 1), (4, 1)]
    latents([VIDEO, np.stack(IMAGES[:3])])  # as many frames as fit: one video of three
    assert encoder.shapes[2:] == [(1, 3), (1, 3)]
    latents([VIDEO[:1]])  # a video of one frame takes the place of an image
    assert encoder.shapes[4:] == [(4, 1)]


@pytest.mark.parametrize(("multiple", "shapes"), [(1, [(4, 1), (1, 3)]), (8, [(8, 1), (8, 3)])])
def test_passes_divide_among_the_devices(multiple, shapes):
    encoder, latents = make(multiple=multiple)
    latents([IMAGES[0], VIDEO])
    assert sorted(encoder.shapes) == sorted(shapes)


def test_what_is_known_is_not_read_again():
    reads = []

    def deferred(seed):
        return Deferred(
            f"image {seed}",
            lambda: reads.append(seed) or tiny.image(seed),
            source=lambda: bytes([seed]),
        )

    _, latents = make()
    first = latents([deferred(0), deferred(1)])
    again = latents([deferred(1), deferred(2), deferred(0)])
    assert sorted(reads) == [0, 1, 2]
    np.testing.assert_array_equal(again[[2, 0]], first)


def test_memory_is_bounded_and_the_oldest_goes():
    encoder, latents = make(megabytes=0)
    # one batch always fits
    np.testing.assert_allclose(latents(IMAGES), [expected(image) for image in IMAGES])
    assert encoder.real == 6 and len(latents) == 0
    latents(IMAGES[:1])
    assert encoder.real == 7


def test_a_file_that_is_written_anew_is_seen_anew(tmp_path):
    """A camera that always writes the same name; a picture in two palettes."""
    encoder, latents = make()
    file = tmp_path / "frame.bmp"
    for seed in (0, 1, 0, 2, 1):
        PIL.Image.fromarray(tiny.image(seed)).save(file)
        np.testing.assert_allclose(latents([Image(file)]), [expected(tiny.image(seed))])
    assert encoder.real == 3, "what was seen before is known again"
    palettes = [PIL.Image.new("P", (16, 16), 0) for _ in range(2)]
    for image, colour in zip(palettes, [(255, 0, 0), (0, 255, 255)], strict=True):
        image.putpalette(colour)
    found = latents(palettes)
    assert found[:, 0, 0].tolist() == [255 * 256, 2 * 255 * 256]


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path):
    file = tmp_path / "frame.bmp"
    write = lambda seed: PIL.Image.fromarray(tiny.image(seed)).save(file)
    write(0)

    class Slow(Encoder):
        def __call__(self, frames, mask):
            write(1)
            return super().__call__(frames, mask)

    latents = Latents(Slow(), Passes(16, 3, 3.0, 4, 1), megabytes=1)
    latents([Image(file)])
    assert len(latents) == 0
    latents([Image(file)])
    assert len(latents) == 1


def test_an_image_goes_to_the_encoder_as_its_tiles():
    """All that it can have, with the number of their arrangement on those that it has."""
    seen = []

    def encode(frames, mask):
        seen.append((frames.copy(), mask.copy()))
        return frames[:, :, 0, 0].astype(np.float32)

    latents = Latents(encode, Passes(16, 3, 3.0, 8, 1, max_tiles=4), megabytes=1)
    wide, square = np.full((10, 30, 3), 7, np.uint8), np.full((16, 16, 3), 9, np.uint8)
    found = latents([wide, square])
    [(frames, mask)] = seen
    assert frames.shape == (2, 4, 16, 16, 3) and mask.dtype == np.int8
    assert mask.tolist() == [[2, 2, 0, 0], [1, 0, 0, 0]]  # one row of two tiles; one tile
    assert (frames[0, :2, :10, :14] == 7).all() and not frames[0, 2:].any()
    assert not frames[0, :2, 10:].any(), "black below the image, which is not enlarged"
    assert found[:, :2, 0].tolist() == [[7, 7], [9, 0]]


@pytest.mark.parametrize("video", [VIDEO, Video("clip.mp4")])
def test_a_model_that_sees_tiles_refuses_a_video(video, monkeypatch):
    monkeypatch.setattr(cache_of_latents, "identity", lambda visual: b"video")
    latents = Latents(Encoder(), Passes(16, 3, 3.0, 8, 1, max_tiles=4), megabytes=1)
    with pytest.raises(PromptError, match="got a video; this model sees an image as tiles"):
        latents([video])
