"""Images and videos to frames, in every form; their identities; and what is refused."""

import io
import os

import numpy as np
import PIL.Image
import pytest
from etils import epath

from flamingo_jax.inference.visuals import (
    Deferred,
    Image,
    PromptError,
    Video,
    identity,
    load_frames,
)
from tests.data_pipelines.media import grey_frames, mp4, number_of
from tests.inference import tiny


def png(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An image, and 20 seconds of video at 10 frames per second; frame k has the grey k."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.png").write_bytes(png(tiny.image(0)))
    (tmp_path / "clip.mp4").write_bytes(mp4(grey_frames(200, step=1)))
    return tmp_path


def numbers(visual, **options):
    frames = load_frames(visual, 32, **options)
    assert frames.shape[1:] == (32, 32, 3) and frames.dtype == np.uint8
    return [number_of(frame, 1) for frame in frames]


def test_every_form_of_an_image_reads_the_same(files):
    array = tiny.image(0)
    forms = [
        array,
        png(array),
        PIL.Image.fromarray(array),
        Image("cat.png"),
        Image(files / "cat.png"),
    ]
    forms += [
        epath.Path("cat.png"),
        Deferred("cat", lambda: array),
        Deferred("cat", lambda: png(array)),
    ]
    for form in forms:
        np.testing.assert_array_equal(load_frames(form, 16), array[None])
    # resized alike
    np.testing.assert_array_equal(load_frames(array, 8), load_frames(png(array), 8))


def test_a_video_is_30_frames_at_3_per_second(files):
    expected = [int(k * 10 / 3) for k in range(30)]
    # coding moves a grey by a level
    np.testing.assert_allclose(numbers(Video("clip.mp4")), expected, atol=1)
    np.testing.assert_allclose(numbers(epath.Path("clip.mp4")), expected, atol=1)
    np.testing.assert_allclose(
        numbers(Video("clip.mp4"), video_frames=3, video_rate=1.0), [0, 10, 20], atol=1
    )


@pytest.mark.parametrize(
    ("start", "end", "first", "count"),
    [
        (12.0, 14.0, 120, 6),
        (5.0, None, 50, 30),
        (15.0, None, 150, 15),
        (18.0, 30.0, 180, 6),
        (3.0, 3.01, 30, 1),
        (19.99, None, 199, 1),
    ],
)
def test_a_segment_is_seen_from_its_start_and_not_beyond_its_end(files, start, end, first, count):
    expected = [first + int(k * 10 / 3) for k in range(count)]
    np.testing.assert_allclose(numbers(Video("clip.mp4", start, end)), expected, atol=1)


def test_an_array_of_frames_is_a_video_as_it_is():
    video = np.stack([tiny.image(seed) for seed in range(3)])
    np.testing.assert_array_equal(load_frames(video, 16), video)


def test_identity_is_the_file_and_segment_or_the_content(files):
    same = [
        [Image("cat.png"), Image(epath.Path("cat.png")), epath.Path("cat.png")],
        [Video("clip.mp4"), Video("clip.mp4", 0.0), epath.Path("clip.mp4")],
        [Video("clip.mp4", 1.0)],
        [Video("clip.mp4", 0.0, 1.0)],
        [tiny.image(0), tiny.image(0).copy()],
        [tiny.image(0).reshape(8, 32, 3)],
        [tiny.image(1)],
        [b"bytes", bytes(bytearray(b"bytes"))],
        [Deferred("a", lambda: b""), Deferred("a", lambda: b"")],
        [Deferred("b", lambda: b"")],
        [PIL.Image.fromarray(tiny.image(0))],
    ]
    found = [{identity(visual) for visual in group} for group in same]
    assert [len(keys) for keys in found] == [1] * len(same)
    assert len(set.union(*found)) == len(same)


def test_a_file_that_changed_is_another(files):
    before = identity(Image("cat.png"))
    (files / "cat.png").write_bytes(png(tiny.image(1)))
    os.utime(files / "cat.png", (0, 12345))
    assert identity(Image("cat.png")) != before


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (np.zeros((4, 4, 3)), r"an array float64\[4, 4, 3\]; expected uint8"),
        (np.zeros((4, 4), np.uint8), r"an array uint8\[4, 4\]; expected uint8"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"an array uint8\[0, 4, 4, 3\]; expected uint8"),
        (np.zeros((31, 4, 4, 3), np.uint8), "31 frames; expected at most 30"),
        (b"not an image", "12 bytes cannot be read as an image"),
        (Deferred("record 7", lambda: b"not an image"), "'record 7' cannot be read as an image"),
        (Image("clip.mp4"), "the file 'clip.mp4' cannot be read as an image"),
        (Video("cat.png"), "the file 'cat.png' cannot be read as a video"),
        (Video("clip.mp4", 20.5), "no segment from 20.5 to 20.0 s in a video of 20.00 s"),
        (Video("clip.mp4", 5.0, 4.0), "no segment from 5.0 to 4.0 s"),
        (Video("clip.mp4", -1.0, 4.0), "no segment from -1.0 to 4.0 s"),
        (Image("nowhere.png"), "there is no image file 'nowhere.png'"),
        (Video("nowhere.mp4"), "there is no video file 'nowhere.mp4'"),
    ],
)
def test_what_cannot_be_read(files, visual, message):
    with pytest.raises(PromptError, match=message):
        load_frames(visual, 16)
