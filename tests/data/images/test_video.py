"""A clip has at most F frames at the given rate, from stored frames or from an encoded file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_jax.data.images import video
from flamingo_jax.data.images.read import MEAN_COLOUR
from flamingo_jax.data.images.video import choose_frames, decode_clip, info, opened
from flamingo_jax.data.schema import CorruptRecord
from tests.data_pipelines.media import grey_frames, mp4, number_of

CONTAINERS = {
    "mp4": {},
    "index first": {"faststart": True},
    "fragments": {"options": {"movflags": "frag_keyframe+empty_moov"}},  # starts at 0.2 s
    "mov": {"suffix": ".mov", "codec": "mpeg4"},
    "webm": {"suffix": ".webm", "codec": "libvpx-vp9"},
    # Its header has no duration.
    "live webm": {"suffix": ".webm", "codec": "libvpx-vp9", "options": {"live": "1"}},
    "mkv": {"suffix": ".mkv"},
    "avi": {"suffix": ".avi", "codec": "mpeg4"},
    "sound": {"sound": True},
}


def numbers(clip):
    return [number_of(frame) for frame in clip]


def test_one_per_second_from_the_first():
    np.testing.assert_array_equal(choose_frames(40, 4.0, num_frames=8), np.arange(8) * 4)
    np.testing.assert_array_equal(choose_frames(100, 24.0, num_frames=30, rate=3.0)[:3], [0, 8, 16])
    np.testing.assert_array_equal(choose_frames(12, 2.5, num_frames=4), [0, 2, 5, 7])


def test_short_videos_end_early():
    np.testing.assert_array_equal(choose_frames(3, 1.0, num_frames=8), [0, 1, 2])
    np.testing.assert_array_equal(choose_frames(1, 30.0, num_frames=8), [0])
    # Stored at a lower rate than that of the clip.
    np.testing.assert_array_equal(choose_frames(3, 0.5, num_frames=8), [0, 1, 2])


@given(
    num=st.integers(1, 60),
    fps=st.floats(0.2, 30),
    num_frames=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_random_clips_are_as_long_as_the_first(num, fps, num_frames, seed):
    first = choose_frames(num, fps, num_frames=num_frames)
    drawn = choose_frames(num, fps, num_frames=num_frames, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(drawn - drawn[0], first)
    assert drawn[-1] < num


def test_every_start_occurs():
    starts = {
        choose_frames(5, 1.0, num_frames=3, rng=np.random.default_rng(seed))[0]
        for seed in range(40)
    }
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("options", [{"num_stored": 0, "fps": 1.0}, {"num_stored": 3, "fps": 0.0}])
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError, match="Cannot choose 2 frames"):
        choose_frames(**options, num_frames=2)


@pytest.fixture(scope="module")
def noise() -> bytes:
    """Four seconds of 200 KB, with the index before the frames."""
    rng = np.random.default_rng(0)
    return mp4(
        [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(40)], faststart=True
    )


@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_of_a_file_are_those_of_choose_frames(container):
    """At a constant rate, a file and its stored frames have the same clips."""
    encoded = mp4(grey_frames(50), fps=10, **CONTAINERS[container])
    assert info(encoded) == (5.0, 10.0, 50, 64, 48)
    for num_frames, rate, seed in [
        (8, 1.0, None),
        (30, 3.0, None),
        (60, 30.0, None),
        (3, 1.0, 0),
        (2, 1.0, 1),
        (9, 9.0, 2),
    ]:

        def rng(seed=seed):
            return None if seed is None else np.random.default_rng(seed)

        clip = decode_clip(encoded, 32, num_frames=num_frames, rate=rate, rng=rng())
        expected = choose_frames(50, 10.0, num_frames=num_frames, rate=rate, rng=rng())
        assert [number_of(frame) for frame in clip] == expected.tolist()
        assert clip.shape == (len(expected), 32, 32, 3)
        assert clip.dtype == np.uint8


@pytest.mark.parametrize("options", [{}, {"suffix": ".webm", "codec": "libvpx-vp9"}])
def test_variable_rate_shows_what_is_on_screen(options):
    encoded = mp4(grey_frames(6, step=40), times=[0, 0.1, 0.2, 1.2, 1.3, 4.0], **options)
    clip = decode_clip(encoded, 32, num_frames=8)
    assert [number_of(frame, 40) for frame in clip] == [0, 2, 4, 4, 5]  # at 0, 1, 2, 3 and 4 s


@pytest.mark.parametrize("container", ["mp4", "webm", "fragments"])
def test_a_clip_of_a_segment_is_within_it(container):
    encoded = mp4(grey_frames(50), fps=10, **CONTAINERS[container])
    segment = {"start": 1.5, "end": 3.5}
    first = decode_clip(encoded, 32, num_frames=8, rate=5.0, **segment)
    assert [number_of(frame) for frame in first] == list(range(15, 31, 2))
    starts = set()
    for seed in range(30):
        clip = decode_clip(
            encoded, 32, num_frames=8, rate=5.0, rng=np.random.default_rng(seed), **segment
        )
        numbers = [number_of(frame) for frame in clip]
        assert np.diff(numbers).tolist() == [2] * 7 and numbers[0] >= 15 and numbers[-1] < 35
        starts.add(numbers[0])
    assert starts == set(range(15, 21))


@pytest.mark.parametrize(
    ("start", "end"), [(5.0, None), (2.0, 2.0), (3.0, 1.0), (-1.0, 2.0), (float("nan"), 2.0)]
)
def test_a_segment_outside_of_the_video_is_broken(start, end):
    with pytest.raises(
        CorruptRecord, match=r"There is no segment from .* in a video of 5.00 s"
    ) as caught:
        decode_clip(mp4(grey_frames(50), fps=10), 32, num_frames=2, start=start, end=end)
    assert caught.value.reason == "broken_span"


def test_aspect_is_kept_and_padded_with_the_mean():
    frame = decode_clip(mp4([np.full((32, 64, 3), 255, np.uint8)]), 32, num_frames=1)[0]
    assert (frame[8:24] > 250).all()
    np.testing.assert_array_equal(frame[:8], np.broadcast_to(MEAN_COLOUR, (8, 32, 3)))


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))]
)
def test_rotation_of_a_camera_is_applied(rotation, corner):
    """The white corner at the top left moves counter-clockwise."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255
    with opened(mp4([image] * 2, rotation=rotation)) as file:
        (frame,) = file.frames([1])
    assert frame.shape == ((64, 48, 3) if rotation in (90, 270) else (48, 64, 3))
    assert frame[corner].min() > 200
    assert frame[-1 - corner[0], -1 - corner[1]].max() < 50


def test_decoding_starts_at_the_last_keyframe(monkeypatch):
    encoded = mp4(grey_frames(50), keyframe_every=5, options={"movflags": "faststart"})
    monkeypatch.setattr(video, "MAX_DECODED", 12)
    with opened(encoded) as file:
        assert [number_of(frame) for frame in file.frames([43, 47])] == [43, 47]
    with (
        opened(encoded) as file,
        pytest.raises(CorruptRecord, match="more than 12 frames decoded") as caught,
    ):
        list(file.frames([3, 40]))
    assert caught.value.reason == "video_too_large"


def test_frames_left_out_do_not_change_the_others():
    """In H.264 no other frame refers to some frames; they are skipped, and others stay the same."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
    encoded = mp4([np.roll(background, 2 * k, axis=1) for k in range(60)], keyframe_every=30)
    with opened(encoded) as file:
        whole = list(file.frames(range(60)))
    for indices in ([0, 10, 20, 30], [7, 17, 27, 37, 47, 57], [59]):
        with opened(encoded) as file:
            for index, frame in zip(indices, file.frames(indices), strict=True):
                np.testing.assert_array_equal(frame, whole[index])


@pytest.mark.parametrize("kept", [0.75, 0.5, 0.05])
def test_missing_frames_are_damage(noise, kept):
    with pytest.raises(CorruptRecord) as caught:
        decode_clip(noise[: int(len(noise) * kept)], 32, num_frames=4)
    assert caught.value.reason == "broken_video"


def test_clip_before_the_damage_is_whole(noise):
    assert decode_clip(noise[: len(noise) * 3 // 4], 32, num_frames=2).shape == (2, 32, 32, 3)


def test_truncated_webm_ends_early():
    """Its header does not have the duration of the picture without the sound."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (48, 64, 3)).astype(np.uint8) for _ in range(40)]
    encoded = mp4(frames, suffix=".webm", codec="libvpx-vp9")
    assert 1 < len(decode_clip(encoded[: len(encoded) // 2], 32, num_frames=4)) < 4
    with pytest.raises(CorruptRecord, match="A video is damaged|missing"):
        decode_clip(encoded[:1500], 32, num_frames=4)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no video",
        # A playlist may name other files.
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x00\x00\x00\x18ftypmp42" + bytes(64),
        b"\x1aE\xdf\xa3" + bytes(64),
        b"RIFF\x00\x00\x00\x00AVI " + bytes(64),
    ],
)
def test_what_is_no_video_is_broken(encoded):
    with pytest.raises(CorruptRecord) as caught:
        decode_clip(encoded, 32, num_frames=2)
    assert caught.value.reason == "broken_video"


def test_unknown_coding_is_broken():
    encoded = mp4(grey_frames(3)).replace(b"avc1", b"xxxx")
    with pytest.raises(CorruptRecord, match="coding that FFmpeg does not know") as caught:
        info(encoded)
    assert caught.value.reason == "broken_video"


def test_sound_alone_is_broken():
    with pytest.raises(CorruptRecord, match="no picture") as caught:
        info(mp4([], sound=True))
    assert caught.value.reason == "broken_video"


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx-vp9"), (".mp4", "libx264")]
)
def test_a_file_that_starts_late_starts_with_its_first_frame(suffix, codec):
    frames, times = grey_frames(20), [5 + k / 10 for k in range(20)]
    encoded = mp4(frames, suffix=suffix, codec=codec, times=times)
    assert info(encoded).duration == pytest.approx(2.0, abs=0.11)
    assert numbers(decode_clip(encoded, 64, num_frames=4)) == [0, 10]
    for seed in range(20):  # a random clip is never behind the end
        clip = decode_clip(encoded, 64, num_frames=1, rng=np.random.default_rng(seed))
        assert 0 <= number_of(clip[0]) < 20


@pytest.mark.parametrize("times", [[0.0], [5.0]])
@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx-vp9"), (".mov", "mpeg4")]
)
def test_a_video_of_one_frame(suffix, codec, times):
    encoded = mp4(grey_frames(8)[7:], suffix=suffix, codec=codec, times=times)
    assert numbers(decode_clip(encoded, 64, num_frames=4)) == [7]


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_sound_after_the_picture_is_no_part_of_the_video(suffix):
    """The duration of the file is 1 second, that of its picture 0.3."""
    encoded = mp4(grey_frames(3), suffix=suffix, sound=True)
    assert info(encoded).duration == pytest.approx(0.3, abs=0.02)
    for seed in range(20):
        decode_clip(encoded, 32, num_frames=1, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("aspect", "shape"),
    [((2, 1), (48, 128)), ((1, 2), (96, 64)), ((4, 3), (48, 85)), ((1, 1), (48, 64))],
)
def test_pixels_become_square(suffix, aspect, shape):
    encoded = mp4(grey_frames(3), suffix=suffix, aspect=aspect)
    with video.opened(encoded) as opened:
        (frame,) = opened.frames([1])
    assert frame.shape == (*shape, 3)
    assert number_of(frame) == 1


def test_rotation_comes_after_the_shape_of_pixels():
    encoded = mp4(grey_frames(2), aspect=(2, 1), rotation=90)
    with video.opened(encoded) as opened:
        assert next(opened.frames([0])).shape == (128, 48, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cover_art_is_not_the_video(suffix):
    encoded = mp4(grey_frames(20), suffix=suffix, cover=True)
    assert numbers(decode_clip(encoded, 64, num_frames=2)) == [0, 10]


def test_cover_art_alone_is_no_video():
    with pytest.raises(CorruptRecord, match="only a cover") as caught:
        info(mp4([], cover=True, sound=True))
    assert caught.value.reason == "broken_video"


@pytest.mark.parametrize(
    ("stated", "duration", "fps"),
    [
        ((10, 10), 2.0, 10),
        ((None, None), 2.0, 15),  # 30 frames are counted
        ((0, 0), 2.0, 15),
        ((None, 25), 2.0, 25),
        ((0, 0), 0.0, 1),
        ((1e9, 0), 2.0, 1000),
        ((1e-9, 0), 2.0, 1e-6),
    ],
)
def test_rates_of_zero_and_nonsense(stated, duration, fps):
    assert video._rate(stated, duration, lambda: 30) == fps


def test_frames_of_absurd_size_are_not_decoded(monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(CorruptRecord, match="64 x 48 pixels, more than") as caught:
        decode_clip(mp4(grey_frames(2)), 32, num_frames=2)
    assert caught.value.reason == "video_too_large"


@given(data=st.data())
def test_mutated_files_give_a_clip_or_are_corrupt(noise, data):
    encoded = bytearray(noise)
    for _ in range(data.draw(st.integers(1, 8))):
        # The index is at the beginning.
        place = data.draw(st.integers(0, len(encoded) - 1) | st.integers(0, 2000))
        encoded[place] = data.draw(st.integers(0, 255))
    try:
        clip = decode_clip(bytes(encoded), 16, num_frames=4)
    except CorruptRecord as error:
        assert error.reason in ("broken_video", "video_too_large")
    else:
        assert clip.shape[1:] == (16, 16, 3)
        assert 1 <= len(clip) <= 4
