"""Converts short videos with one text each to video_text records.

They are used in place of VTP (paper, A.3.3).

    --format=folder --input=clips/                               x.mp4 and x.txt
    --format=table --input=captions.csv                          path of a video, caption
    --format=webvid --input=results_2M_train.csv --videos=DIR    DIR/page_dir/videoid.mp4
    --format=hdvila --input=hdvila.jsonl --videos=DIR            DIR/clip_id, DIR/video_id.mp4
    --format=webdataset --input=tars/                            tars of x.mp4 and x.txt

    python -m data_pipelines.run --pipeline=videos --format=folder --input=clips/ --output=DIR

A record stores the first --max_seconds as frames at --fps. Training (8 frames at 1 per second) and
evaluation (30 at 3 per second) choose from them without decoding a whole file. With --store=file a
record stores the file as it is. Clips of HD-VILA are separate files, or are cut from the whole
video. HD-VILA has no captions, and the speech of its videos is published separately. So the text is
the field --text_field of each clip, added by whoever joins the two, or the .txt next to the clip's
file.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from etils import epath
from PIL import Image

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, each_in_time, in_time
from data_pipelines.formats import jsonl, tables, tars
from data_pipelines.formats.local_files import inside, read_inside
from data_pipelines.inputs import InputFiles, input_files
from data_pipelines.keys import url_key
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from data_pipelines.pairs import TEXT_COLUMNS, caption, sample_metadata, sample_text
from flamingo_jax.core.paths import regular
from flamingo_jax.data.images import video
from flamingo_jax.data.schema import CorruptRecord, VideoText

FORMATS = ("folder", "table", "webvid", "hdvila", "webdataset")
STORES = ("frames", "file")
SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
VIDEO_COLUMNS = ("video", "filepath", "video_path", "path", "filename", "file")

_TAR_VIDEOS = tuple(suffix.strip(".") for suffix in SUFFIXES)
_TAR_LIMITS = {
    **dict.fromkeys(_TAR_VIDEOS, tars.MAX_SAMPLE),
    "txt": tars.MAX_TEXT,
    "json": tars.MAX_FIELDS,
}
_TABLE_PART = 1 << 16  # bytes of a table for one worker and one shard: some 300 videos
_LINES_PART = 1 << 17  # bytes of JSON lines for one worker and one shard
_FOLDER_PART = 256  # videos
_JPEG_QUALITY = 90
_TIME = re.compile(r"(\d{1,3}):(\d\d):(\d\d(?:\.\d{1,9})?)")

Unit = str | tuple[str, ...] | tables.Part | jsonl.Lines


@dataclasses.dataclass(frozen=True)
class VideosRequest:
    """The options that decide the videos.

    Attributes:
      input: files, directories or patterns, separated by commas.
      format: folder | table | webvid | hdvila | webdataset.
      videos: webvid, hdvila, table: folder of the videos; "": the folder of the table.
      video_column: table: column with the path of the video; "": the first of video, filepath,
        video_path, path, filename, file.
      text_column: table: column with the caption; "": the first of caption, title, text.
      tsv_quotes: table, webvid: fields of a tab-separated table can be in quotes, as pandas writes
        them; by default a quote in one is a letter like any other.
      text_field: hdvila: field of each clip with its text.
      store: frames (JPEG) | file (as it is).
      fps: stored frames per second.
      max_seconds: stored length, from the start.
      frame_size: pixels of the longer side of a stored frame; a smaller frame keeps its size.
      max_megabytes: a larger file is left out with --store=file.
      max_characters: a longer caption is left out.
      max_record_seconds: largest CPU time of a video; one that takes more is counted as too_slow.
    """

    input: str = ""
    format: str = "folder"
    videos: str = ""
    video_column: str = ""
    text_column: str = ""
    tsv_quotes: bool = False
    text_field: str = "caption"
    store: str = "frames"
    fps: float = 3.0
    max_seconds: float = 30.0
    frame_size: int = 320
    max_megabytes: int = 64
    max_characters: int = 2000
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        for name, values in (("format", FORMATS), ("store", STORES)):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"videos: got --{name}={getattr(self, name)!r}, expected one of "
                    f"{', '.join(values)}."
                )
        for name in ("fps", "max_seconds", "frame_size", "max_megabytes", "max_characters"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"videos: got --{name}={getattr(self, name)}, expected more than 0."
                )
        check_seconds("videos", self.max_record_seconds)

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of files that are read from the folder of the input."""
        return () if self.format == "webdataset" or self.videos else (*SUFFIXES, ".txt")


@dataclasses.dataclass(frozen=True)
class _Clip:
    """A video to store, and what is known about it.

    Attributes:
      text: its caption; anything but a str or bytes counts as no caption.
      source: its name.
      url: where it was found; "" = not known.
      span: start and end in the video at `url`, in seconds; None = the whole video.
      is_cut: True if the file is the clip, not the whole video.
    """

    text: object
    source: str
    url: str = ""
    span: tuple[float, float] | None = None
    is_cut: bool = True


def build(request: VideosRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the videos as a video_text dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no input, or too much of it is damaged.
    """
    files = _files(request)
    units, read = _units(request, files), functools.partial(read_unit, request)
    passed_over = files.passed_over
    return collect(units, read, "video_text", output, how, passed_over=passed_over).table()


def read_unit(request: VideosRequest, unit: Unit) -> Iterator[Found | Reject]:
    """Yields the videos of one unit, and a Reject for each video that is left out.

    Args:
      request: what to store of them.
      unit: the path of a tar, paths of videos, part of a table, or part of a file of JSON lines.
    """
    seconds = request.max_record_seconds
    if isinstance(unit, tuple):
        for path in unit:
            yield from in_time(seconds, path, functools.partial(_from_folder, path, request))
        return
    place = unit if isinstance(unit, str) else unit.path
    folder = _folder(request, place)
    records: Iterator[Any]
    make: Callable[[Any], Iterable[Found | Reject]]
    if isinstance(unit, str):
        records = tars.samples(unit, _TAR_LIMITS)
        make = lambda sample: [_from_sample(sample, request)]
    elif isinstance(unit, tables.Part):
        records, make = tables.rows(unit), lambda row: [_from_row(row, request, folder)]
    else:
        records, make = jsonl.rows(unit), lambda line: _from_line(line, request, folder)
    yield from each_in_time(records, make, seconds=seconds, place=place)


def _files(request: VideosRequest) -> InputFiles:
    if request.format == "webdataset":
        return input_files(request.input, tars.SUFFIXES)
    if request.format == "folder":
        return input_files(request.input, SUFFIXES, (".txt",))
    suffixes = jsonl.SUFFIXES if request.format == "hdvila" else tables.SUFFIXES
    return input_files(request.input, suffixes, (*SUFFIXES, ".txt"))


def _units(request: VideosRequest, files: InputFiles) -> list[Unit]:
    if request.format == "webdataset":
        return list(files)
    if request.format == "folder":
        return [tuple(files[k : k + _FOLDER_PART]) for k in range(0, len(files), _FOLDER_PART)]
    if request.format == "hdvila":
        return [part for path in files for part in jsonl.parts(path, _LINES_PART)]
    return [
        part
        for path in files
        for part in tables.parts(path, _TABLE_PART, quoted=request.tsv_quotes)
    ]


def _folder(request: VideosRequest, path: str) -> epath.Path:
    return epath.Path(request.videos) if request.videos else epath.Path(path).parent


def _from_sample(sample: tars.TarSample, request: VideosRequest) -> Found | Reject:
    fields = sample_metadata(sample)
    if isinstance(fields, Reject):
        return fields
    content = sample.first(*_TAR_VIDEOS)
    if content is None:
        return Reject("missing_video", sample.described(), broken=True)
    clip = _Clip(sample_text(sample, fields), sample.key, str(fields.get("url") or ""))
    return _found(io.BytesIO(content), clip, request)


def _from_folder(path: str, request: VideosRequest) -> Iterator[Found | Reject]:
    folder, name = epath.Path(path).parent, os.path.basename(path)
    yield _from_file(folder, name, _Clip(_text_file(folder, name), name), request)


def _from_row(row: dict[str, str], request: VideosRequest, folder: epath.Path) -> Found | Reject:
    if request.format == "webvid":
        if missing := {"videoid", "contentUrl", "page_dir", "name"} - set(row):
            detail = f"no {', '.join(sorted(missing))} among {', '.join(row)}"
            return Reject("missing_column", detail, broken=True)
        name = "/".join(filter(None, (row["page_dir"], f"{row['videoid']}.mp4")))
        clip = _Clip(row["name"], row["videoid"], row["contentUrl"])
        return _from_file(folder, name, clip, request)
    path = tables.column(row, request.video_column, VIDEO_COLUMNS, flag="--video_column")
    if isinstance(path, Reject):
        return path
    text = tables.column(row, request.text_column, TEXT_COLUMNS, flag="--text_column")
    if isinstance(text, Reject):
        return text
    clip = _Clip(text, os.path.basename(path), row.get("url", ""))
    return _from_file(folder, path, clip, request)


def _from_line(
    line: dict[str, Any], request: VideosRequest, folder: epath.Path
) -> Iterator[Found | Reject]:
    """Yields the clips of one video of HD-VILA."""
    clips = line.get("clip")
    whole = f"{line.get('video_id')}.mp4"
    if not isinstance(clips, list) or not all(isinstance(clip, dict) for clip in clips):
        yield Reject("broken_row", f"{whole}: clip is no list of objects", broken=True)
        return
    for clip in clips:
        name, span = str(clip.get("clip_id")), _span(clip.get("span"))
        if span is None:
            yield Reject("broken_span", f"{name}: {clip.get('span')!r:.100}", broken=True)
            continue
        text = clip.get(request.text_field)
        text = _text_file(folder, name) if text is None else text
        cut = _Clip(text, name, str(line.get("url") or ""), span)
        found = _from_file(folder, name, cut, request)
        is_missing = isinstance(found, Reject) and found.reason == "missing_video"
        if is_missing and request.store == "frames":
            uncut = dataclasses.replace(cut, is_cut=False)
            found = _from_file(folder, whole, uncut, request)
        yield found


def _span(value: object) -> tuple[float, float] | None:
    """Returns the seconds of ["00:00:17.759", "00:00:23.279"]."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    matches = [_TIME.fullmatch(str(time)) for time in value]
    seconds = [3600 * int(m[1]) + 60 * int(m[2]) + float(m[3]) for m in matches if m]
    return (seconds[0], seconds[1]) if len(seconds) == 2 and seconds[0] < seconds[1] else None


def _text_file(folder: epath.Path, name: str) -> bytes | None:
    """Returns the content of the .txt next to a video; None if there is no such file.

    `inside` finds .TXT too.
    """
    path = os.path.splitext(name)[0] + ".txt"
    text = read_inside(folder, path, max_bytes=tars.MAX_TEXT, missing="no_text")
    return None if isinstance(text, Reject) else text


def _from_file(
    folder: epath.Path, name: str, clip: _Clip, request: VideosRequest
) -> Found | Reject:
    path = inside(folder, name)
    if isinstance(path, Reject):
        return path
    try:
        file = regular(path).open("rb")
    except (OSError, ValueError) as error:  # ValueError: not a valid name for the file system
        return Reject("missing_video", f"{name!r:.200}: {error}", broken=True)
    with file:
        return _found(file, clip, request)


def _found(file: IO[bytes], clip: _Clip, request: VideosRequest) -> Found | Reject:
    text: str | Reject = Reject("no_text")
    if isinstance(clip.text, str | bytes):
        text = caption(clip.text, request.max_characters)
    if isinstance(text, Reject):
        return dataclasses.replace(text, detail=f"{clip.source}: {text.detail}")
    metadata: dict[str, Any] = {"source": clip.source} | ({"url": clip.url} if clip.url else {})
    if clip.span:
        metadata["span"] = clip.span
    stored = json.dumps(metadata, allow_nan=False)
    try:
        with video.opened(file) as opened:
            if request.store == "frames":
                frames, fps = stored_frames(
                    opened,
                    None if clip.is_cut else clip.span,
                    fps=request.fps,
                    max_seconds=request.max_seconds,
                    frame_size=request.frame_size,
                )
                record = VideoText(frames, text, fps, metadata=stored)
            else:
                next(iter(opened.frames([0])))  # raises CorruptRecord if it cannot be decoded
                file.seek(0)
                content = file.read((request.max_megabytes << 20) + 1)
                if len(content) > request.max_megabytes << 20:
                    detail = f"{clip.source}: more than {request.max_megabytes} MiB"
                    return Reject("file_too_large", detail)
                record = VideoText((), text, opened.info.fps, content, stored)
    except CorruptRecord as error:
        return Reject(error.reason, f"{clip.source}: {error}", broken=True)
    # A video has many clips. Two clips are the same only if both the URL and the times are equal.
    span = f" {clip.span}" if clip.span else ""
    return Found(record, (url_key(clip.url) + span,) if clip.url else ())


def stored_frames(
    opened: video.VideoFile,
    span: tuple[float, float] | None,
    *,
    fps: float,
    max_seconds: float,
    frame_size: int,
) -> tuple[tuple[bytes, ...], float]:
    """Returns the frames to store, as JPEG, and their number per second.

    Args:
      opened: the video.
      span: start and end of the part that is stored, in seconds; None = the whole video.
      fps: frames per second, at most those of the video.
      max_seconds: stored length, from the start.
      frame_size: pixels of the longer side; a smaller frame keeps its size.

    Raises:
      CorruptRecord: the video has no such part, or cannot be decoded.
    """
    info = opened.info
    start, end = (0.0, info.duration) if span is None else span
    first, last = round(start * info.fps), min(max(round(end * info.fps), 1), info.num_frames)
    if first >= last:
        raise CorruptRecord(
            f"From {start} to {end} s of a video of {info.duration:.2f} s.", reason="broken_span"
        )
    most = max(round(max_seconds * fps), 1)
    chosen = first + video.choose_frames(last - first, info.fps, num_frames=most, rate=fps)
    frames = opened.frames(chosen.tolist())
    return tuple(_jpeg(pixels, frame_size) for pixels in frames), min(fps, info.fps)


def _jpeg(pixels: Any, size: int) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
