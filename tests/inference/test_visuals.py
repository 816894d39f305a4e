"""Images and videos to frames, in every form; their identities; and what is refused."""

import io
import os
import time

import numpy as np
import PIL.Image
import pytest
from etils import epath

from flamingo_jax.inference import identity as identities
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.visuals import (
    Deferred,
    Image,
    PromptError,
    Video,
    load_frames,
)
from tests.data_pipelines.media import grey_frames, mp4, number_of
from tests.inference import tiny


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def png(array):
    return saved(PIL.Image.fromarray(array))


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


def indexed(*colours, clear=None):
    """One drawing, with the colours of its palette."""
    image = PIL.Image.new("P", (8, 8), 1)
    image.paste(0, (0, 0, 4, 8))
    image.putpalette(sum(colours, ()))
    if clear is not None:
        image.info["transparency"] = clear
    return image


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def opened(content):
    return PIL.Image.open(io.BytesIO(content))


def test_identity_is_the_content(files):
    (files / "copy.jpg").write_bytes((files / "cat.png").read_bytes())
    red, blue, green = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    cat = (files / "cat.png").read_bytes()
    turned = PIL.Image.Exif()
    turned[0x0112] = 3
    clear = np.dstack([tiny.image(0), tiny.image(1)[..., 0]])
    same = [
        [Image("cat.png"), Image(epath.Path("cat.png")), epath.Path("cat.png")],
        [Video("clip.mp4"), Video("clip.mp4", 0.0), epath.Path("clip.mp4")],
        [Video("clip.mp4", 1.0)],
        [Video("clip.mp4", 0.0, 1.0)],
        [tiny.image(0), tiny.image(0).copy(), PIL.Image.fromarray(tiny.image(0))],
        [np.asfortranarray(tiny.image(2)), Deferred("a", lambda: tiny.image(2))],
        [clear, PIL.Image.fromarray(clear)],
        [indexed(red, blue), indexed(red, blue), indexed(red, blue).convert("RGB")],
        [indexed(green, blue)],
        [indexed(red, blue, clear=0)],
        [indexed(red, blue, clear=1)],
        [indexed(red, blue, clear=b"\x80\xff")],
        [saved(opened(cat), exif=turned), opened(saved(opened(cat), exif=turned))],
        [PIL.Image.new("L", (4, 4), 3), PIL.Image.new("RGB", (4, 4), (3, 3, 3))],
        [PIL.Image.fromarray(np.full((4, 4), 0.5, np.float32))],
        [
            Deferred("a", lambda: b"", source=lambda: b"1"),
            Deferred("b", bytes, source=lambda: b"1"),
        ],
        [Deferred("a", lambda: b"", source=lambda: b"2")],
        [tiny.image(0).reshape(8, 32, 3)],
        [tiny.image(1)],
        [b"bytes", bytes(bytearray(b"bytes"))],
    ]
    same[0] += [Image("copy.jpg"), cat, opened(cat)]
    same[0] += [Deferred("a", lambda: cat), Deferred("b", lambda: cat)]
    found = [{identity(visual) for visual in group} for group in same]
    assert [len(keys) for keys in found] == [1] * len(same)
    assert len(set.union(*found)) == len(same)


@pytest.mark.parametrize("visual", [Image("frame"), Video("frame"), Video("frame", 1.0, 2.0)])
def test_a_file_that_changed_is_another(tmp_path, monkeypatch, visual):
    """Of the same size, at once and with the same time: as cameras and copies do."""
    monkeypatch.chdir(tmp_path)
    file, found = tmp_path / "frame", set()
    for number in range(50):
        file.write_bytes(b"%4d" % number)
        os.utime(file, (12345, 12345))
        found.add(identity(visual))
    assert len(found) == 50
    file.write_bytes(b"%4d" % 7)
    assert identity(visual) in found


def test_an_old_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch, clock_of):
    file = tmp_path / "film.mp4"
    file.write_bytes(b"1234")
    now = time.time()
    clock_of(identities, time=lambda: now + 3600)
    reads = []
    path_open = epath.Path.open if hasattr(epath.Path, "open") else None
    assert path_open
    first = identity(Video(file))
    monkeypatch.setattr(type(epath.Path(file)), "open", lambda *_: reads.append(1))
    assert identity(Video(file)) == first and not reads
    monkeypatch.undo()
    kept = os.stat(file)
    file.write_bytes(b"4321")
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert identity(Video(file)) != first
    os.rename(file, tmp_path / "kept.mp4")
    (tmp_path / "copy.mp4").write_bytes(b"4321")
    assert identity(Video(tmp_path / "copy.mp4")) == identity(Video(tmp_path / "kept.mp4"))


def test_an_array_that_was_changed_in_place_is_another():
    array = tiny.image(0).copy()
    image = PIL.Image.fromarray(array)
    before = identity(array), identity(image)
    array[0, 0] ^= 255
    image.putpixel((0, 0), (1, 2, 3))
    assert identity(array) != before[0] and identity(image) != before[1]


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (np.zeros((4, 4, 3)), r"an array float64\[4, 4, 3\]; expected uint8"),
        (np.zeros((4, 4), np.uint8), r"an array uint8\[4, 4\]; .* has the palette"),
        (np.zeros((4, 4), np.uint16), r"an array uint16\[4, 4\]; expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"an array uint8\[4, 4, 2\]; expected uint8"),
        (PIL.Image.new("RGB", (0, 4)), r"expected uint8"),
        (opened(png(NOISE)[:-300]), "a PIL image cannot be read as an image"),
        (epath.Path("."), "the file '.' cannot be read"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"an array uint8\[0, 4, 4, 3\]; expected uint8"),
        (np.zeros((31, 4, 4, 3), np.uint8), "31 frames; expected at most 30"),
        (b"not an image", "12 bytes cannot be read as an image"),
        (Deferred("record 7", lambda: b"not an image"), "'record 7' cannot be read as an image"),
        (Image("clip.mp4"), "the file 'clip.mp4' cannot be read as an image"),
        (Video("cat.png"), "the file 'cat.png' cannot be read as a video"),
        (Video("clip.mp4", 20.5), "no segment from 20.5 to 20.0 s in a video of 20.00 s"),
        (Video("clip.mp4", 5.0, 4.0), "no segment from 5.0 to 4.0 s"),
        (Video("clip.mp4", -1.0, 4.0), "no segment from -1.0 to 4.0 s"),
        (Image("."), r"the file '\.' cannot be read as an image .*it is a directory"),
        (Image("/proc/self/mem"), "'/proc/self/mem' cannot be read as an image .*Input/output"),
        (Image("nowhere.png"), "there is no image file 'nowhere.png'"),
        (Video("nowhere.mp4"), "there is no video file 'nowhere.mp4'"),
    ],
)
def test_what_cannot_be_read(files, visual, message):
    with pytest.raises(PromptError, match=message):
        load_frames(visual, 16)
