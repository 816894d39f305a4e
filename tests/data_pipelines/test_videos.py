"""Videos from files, tables, WebVid, HD-VILA and tars.

What is stored of them, and the reason of everything left out.
"""

import collections
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest
from etils import epath

from data_pipelines import videos
from data_pipelines.collect import Found
from data_pipelines.formats import jsonl
from data_pipelines.formats.tables import Part
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from data_pipelines.videos import VideosRequest, read_unit
from flamingo_jax.data.images.video import decode_clip
from flamingo_jax.data.schema import VideoText
from flamingo_jax.data.sources import Source
from tests.data_pipelines.media import grey_frames, mp4, number_of


@pytest.fixture(scope="module")
def encoded() -> bytes:
    """A video of five seconds with 10 frames per second."""
    return mp4(grey_frames(50), faststart=True)


def numbers(record: VideoText) -> list[int]:
    """Returns the numbers of the stored frames in the source."""
    return [number_of(np.asarray(PIL.Image.open(io.BytesIO(frame)))) for frame in record.frames]


def reasons(items):
    return collections.Counter(
        item.reason if isinstance(item, Reject) else "found" for item in items
    )


def folder_unit(directory, *names):
    return tuple(str(directory / name) for name in names)


def test_folder_of_videos_and_captions(tmp_path, encoded):
    (tmp_path / "dog.mp4").write_bytes(encoded)
    (tmp_path / "dog.txt").write_text(" A dog\nruns. ")
    (tmp_path / "cat.webm").write_bytes(mp4(grey_frames(50), suffix=".webm", codec="libvpx-vp9"))
    (tmp_path / "cat.txt").write_text("A cat.")
    (tmp_path / "none.mp4").write_bytes(encoded)
    unit = folder_unit(tmp_path, "dog.mp4", "cat.webm", "none.mp4")
    found, cat, none = read_unit(VideosRequest(), unit)
    assert (found.record.text, found.record.fps, found.record.video) == ("A dog runs.", 3.0, b"")
    stored = [0, 3, 6, 10, 13, 16, 20, 23, 26, 30, 33, 36, 40, 43, 46]
    assert numbers(found.record) == numbers(cat.record) == stored
    assert json.loads(found.record.metadata) == {"source": "dog.mp4"}
    assert none.reason == "no_text"


def test_stored_frames_are_few_small_and_upright(tmp_path):
    wide = [np.full((200, 400, 3), 5 * k, np.uint8) for k in range(30)]
    (tmp_path / "a.mp4").write_bytes(mp4(wide, rotation=90))
    (tmp_path / "a.txt").write_text("a")
    request = VideosRequest(frame_size=100, fps=2.0, max_seconds=1.0)
    (found,) = read_unit(request, folder_unit(tmp_path, "a.mp4"))
    assert numbers(found.record) == [0, 5]
    image = PIL.Image.open(io.BytesIO(found.record.frames[0]))
    assert (image.format, image.size) == ("JPEG", (50, 100))


def test_slow_video_is_stored_at_its_own_rate(tmp_path):
    (tmp_path / "a.mp4").write_bytes(mp4(grey_frames(4), fps=2))
    (tmp_path / "a.txt").write_text("a")
    (found,) = read_unit(VideosRequest(), folder_unit(tmp_path, "a.mp4"))
    assert (numbers(found.record), found.record.fps) == ([0, 1, 2, 3], 2.0)


def test_file_as_it_is(tmp_path, encoded):
    (tmp_path / "a.mp4").write_bytes(encoded)
    (tmp_path / "a.txt").write_text("a")
    request = VideosRequest(store="file")
    (found,) = read_unit(request, folder_unit(tmp_path, "a.mp4"))
    assert found.record == VideoText((), "a", 10.0, encoded, '{"source": "a.mp4"}')
    frames = decode_clip(found.record.video, 32, num_frames=2)
    assert [number_of(frame) for frame in frames] == [0, 10]
    (tmp_path / "a.mp4").write_bytes(encoded + bytes(2 << 20))
    request = VideosRequest(store="file", max_megabytes=1)
    (large,) = read_unit(request, folder_unit(tmp_path, "a.mp4"))
    assert large.reason == "file_too_large"


def test_webvid(tmp_path, encoded):
    """The files are results_2M_train.csv and DIR/page_dir/videoid.mp4."""
    (tmp_path / "videos" / "000001_000050").mkdir(parents=True)
    (tmp_path / "videos" / "000001_000050" / "1066674784.mp4").write_bytes(encoded)
    url = "https://ak.org/1066674784/preview/1.mp4"
    lines = [
        "videoid,contentUrl,duration,page_dir,name",
        f'1066674784,{url},PT00H00M05S,000001_000050,"Dog, running"',
        "21179416,https://ak.org/21179416/preview/2.mp4,PT00H00M11S,006001_006050,Missing video",
        "3,https://ak.org/3.mp4,PT00H00M11S,../../etc,Bad directory",
        "4,https://ak.org/4.mp4,PT00H00M11S,000001_000050",
    ]
    table = tmp_path / "results_2M_train.csv"
    table.write_text("\n".join(lines))
    request = VideosRequest(format="webvid", videos=str(tmp_path / "videos"))
    items = list(read_unit(request, Part(str(table))))
    assert reasons(items) == {"found": 1, "missing_video": 1, "path_traversal": 1, "broken_row": 1}
    assert all(item.broken for item in items[1:])
    assert items[0].record.text == "Dog, running"
    assert items[0].keys == (f"url:{url}",)
    table.write_text("a,b\n1,2\n")
    assert reasons(read_unit(request, Part(str(table)))) == {"missing_column": 1}


def test_hdvila_clips_as_files_or_cut_from_the_video(tmp_path, encoded):
    (tmp_path / "X.mp4").write_bytes(encoded)
    (tmp_path / "X.2.mp4").write_bytes(mp4(grey_frames(20)))
    (tmp_path / "X.2.txt").write_text("From the .txt file.")
    clips = [
        {"clip_id": "X.1.mp4", "span": ["00:00:01.500", "00:00:03.000"], "caption": "Cut."},
        {"clip_id": "X.2.mp4", "span": ["00:00:03.000", "00:00:05.000"]},
        {"clip_id": "X.3.mp4", "span": ["00:00:03.000", "00:00:02.000"], "caption": "a"},
        {"clip_id": "X.4.mp4", "span": ["00:10:00.000", "00:10:05.000"], "caption": "a"},
        {"clip_id": "X.5.mp4", "span": ["00:00:00.000", "00:00:01.000"]},
        {"clip_id": "../X.6.mp4", "span": ["00:00:00.000", "00:00:01.000"], "caption": "a"},
        {"clip_id": "X.7.mp4", "span": "00:00:00.000"},
        {
            "clip_id": "X" * 5000,
            "span": ["00:00:00.000", "00:00:00.100"],
            "caption": "From X.mp4: no file can have that name.",
        },
    ]
    lines = [
        {"video_id": "X", "url": "https://video.org/watch?v=X", "clip": clips},
        {
            "video_id": "Y",
            "url": "https://video.org/watch?v=Y",
            "clip": [clips[0] | {"clip_id": "Y.1.mp4"}],
        },
        {"video_id": "Z", "url": "https://video.org/watch?v=Z", "clip": "none"},
    ]
    file = tmp_path / "hdvila.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = list(read_unit(VideosRequest(format="hdvila", fps=2.0), jsonl.Lines(str(file))))
    assert reasons(items) == {
        "found": 3,
        "broken_span": 3,
        "no_text": 1,
        "path_traversal": 1,
        "missing_video": 1,
        "broken_row": 1,
    }
    cut, whole, _ = (item for item in items if isinstance(item, Found))
    assert numbers(cut.record) == [15, 20, 25]
    assert cut.keys == ("url:https://video.org/watch?v=X (1.5, 3.0)",)
    assert json.loads(cut.record.metadata)["span"] == [1.5, 3.0]
    assert numbers(whole.record) == [0, 5, 10, 15]
    assert whole.record.text == "From the .txt file."
    filed = read_unit(VideosRequest(format="hdvila", store="file"), jsonl.Lines(str(file)))
    # A clip is not cut from the whole video, since that would need encoding it again.
    assert reasons(filed)["missing_video"] == 5


def test_table_of_paths_and_captions(tmp_path, encoded):
    (tmp_path / "a.mp4").write_bytes(encoded)
    table = tmp_path / "captions.csv"
    table.write_text("video,caption,url\na.mp4,A dog.,https://a.org/1\nb.mp4,A cat.,\n")
    items = list(read_unit(VideosRequest(format="table"), Part(str(table))))
    assert reasons(items) == {"found": 1, "missing_video": 1}
    assert items[0].keys == ("url:https://a.org/1",)


def test_tars(tmp_path, encoded):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        members = {
            "a.mp4": encoded,
            "a.txt": b"A dog.",
            "a.json": b'{"url": "https://a.org/1", "status": "success"}',
        }
        for name, content in (members | {"b.txt": b"No video."}).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    items = list(read_unit(VideosRequest(format="webdataset"), str(tmp_path / "0.tar")))
    assert reasons(items) == {"found": 1, "missing_video": 1}
    assert (items[0].record.text, items[0].keys) == ("A dog.", ("url:https://a.org/1",))


@pytest.mark.parametrize("store", videos.STORES)
def test_damaged_videos(tmp_path, encoded, store):
    bad = {
        "cut.mp4": encoded[: len(encoded) // 4],
        "empty.mp4": b"",
        "text.mp4": b"no video",
        "sound.mp4": mp4([], sound=True),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).with_suffix(".txt").write_text("a")
    items = list(read_unit(VideosRequest(store=store), folder_unit(tmp_path, *bad)))
    assert [(item.reason, item.broken) for item in items] == [("broken_video", True)] * len(bad)


def test_dataset(tmp_path, encoded):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(encoded)
        (tmp_path / f"{name}.txt").write_text(name)
    output = epath.Path(tmp_path / "set")
    output.mkdir()
    counts = videos.build(VideosRequest(input=str(tmp_path)), output, Execution(num_workers=1))
    assert counts == {"in": 2, "out: train": 2}
    source = Source(output)
    assert [source[k].text for k in range(2)] == ["a", "b"]
    assert len(source[0].frames) == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "mp4"}, "expected one of folder, table, webvid, hdvila, webdataset"),
        ({"store": "clip"}, "expected one of frames, file"),
        ({"fps": 0.0}, "--fps=0.0, expected more than 0"),
        ({"max_seconds": float("nan")}, "expected more than 0"),
    ],
)
def test_requests_that_cannot_work_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        VideosRequest(**options)
