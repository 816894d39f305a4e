"""Takes a clip of few frames from a video: 8 frames at 1 per second in training (paper, B.1.2).

    stored, 4 per second   0 1 2 3 4 5 6 7 8 9 . . .
    clip, 1 per second     |       |       |

In training the clip starts at a random frame, otherwise at the first frame. The paper does not say
how to treat a video that is shorter than the clip: here the clip ends early, and frame_mask is
False after its end. A still image is a video of one frame. For evaluation the paper takes 30 frames
at 3 per second and interpolates the learnt time embeddings: here with other values of `num_frames`
and `rate`.

A video is stored as its frames, or as a file (MP4, MOV, WebM, Matroska, AVI). PyAV decodes a file
from the keyframe before the clip to the end of the clip. The frames of a file are numbered by time:
frame i is the frame on screen in the middle of [i, i + 1) / fps seconds. At a constant rate this is
the i-th frame, at a variable rate it is what a viewer would see. Time 0 is the first frame, also in
a file that starts later. A frame has square pixels and is upright, as a player shows it.
"""

import bisect
import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from jaxtyping import Int, UInt8

from flamingo_jax.data.config import ImageFit
from flamingo_jax.data.images.read import fit
from flamingo_jax.data.schema import CorruptRecord

MAX_PIXELS = 40_000_000  # of a frame: 8K has 33 million
# Frames that are decoded to reach and to read one clip: almost 3 minutes at 60 per second.
MAX_DECODED = 10_000
_MAX_SECONDS = 1e6  # a file with a longer duration in its header is damaged
_MAX_FPS = 1000.0
_MAX_ASPECT = 10.0  # of a pixel; formats in use have at most 64:33
_STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000")
# Damaged numbers in a file lead to the last three.
_DAMAGE = (av.FFmpegError, ValueError, ArithmeticError, LookupError)


class VideoInfo(NamedTuple):
    """The header of a video file.

    Attributes:
        duration: seconds.
        fps: frames per second; at a variable rate, that of the frames with the shortest distance.
        num_frames: duration * fps, at least 1.
        width, height: in pixels, as coded (before rotation, and before pixels become square).
    """

    duration: float
    fps: float
    num_frames: int
    width: int
    height: int


def choose_frames(
    num_stored: int,
    fps: float,
    *,
    num_frames: int,
    rate: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Int[np.ndarray, "F"]:
    """Chooses the stored frames of a clip.

    Args:
        num_stored: number of stored frames, at least 1.
        fps: stored frames per second.
        num_frames: F, the most frames to choose.
        rate: chosen frames per second. If a video is stored at a lower rate, each of its frames is
            chosen once.
        rng: draws the start of the clip; None = the first frame.

    Returns:
        int[f] indices of stored frames, 1 <= f <= num_frames, ascending.

    Raises:
        ValueError: there is no frame, or a rate is not positive.
    """
    if num_stored < 1 or num_frames < 1 or not (0 < fps < float("inf")) or rate <= 0:
        raise ValueError(
            f"Cannot choose {num_frames} frames at {rate} per second out of {num_stored} frames at "
            f"{fps} per second: all four must be positive."
        )
    step = max(fps / rate, 1.0)  # stored frames from one chosen frame to the next
    span = int((num_frames - 1) * step)  # stored frames from the first to the last chosen one
    start = 0 if rng is None else int(rng.integers(max(num_stored - span, 1)))
    indices = start + (np.arange(num_frames) * step).astype(np.int64)
    return indices[indices < num_stored]


def info(encoded: bytes) -> VideoInfo:
    """Reads the header of an encoded file, without decoding it.

    Raises:
        CorruptRecord: as in `opened`.
    """
    with opened(encoded) as video:
        return video.info


def decode_clip(
    encoded: Any,
    size: int,
    *,
    num_frames: int,
    rate: float = 1.0,
    rng: np.random.Generator | None = None,
    start: float = 0.0,
    end: float | None = None,
    image_fit: ImageFit = "pad",
) -> UInt8[np.ndarray, "F S S 3"]:
    """Decodes a clip from a segment of an encoded file.

    `choose_frames` chooses the frames, and `read.fit` makes each of them a square.

    Args:
        encoded: as in `opened`.
        size: S, side of the frames in pixels.
        num_frames: F, the most frames.
        rate: frames per second.
        rng: draws the start of the clip; None = the first frame.
        start: seconds at which the segment starts.
        end: seconds at which the segment ends, at most at the end of the video; None = the end of
            the video. A segment that is shorter than a frame is one frame.
        image_fit: how a frame becomes a square.

    Returns:
        uint8[f, S, S, 3] RGB, 1 <= f <= num_frames.

    Raises:
        CorruptRecord: the file is no video, or a frame of the clip is damaged or missing
            ("broken_video"); decoding would take far too long ("video_too_large"); or the segment
            is outside of the video ("broken_span").
    """
    with opened(encoded) as video:
        first, stop = _segment(video.info, start, end)
        chosen = first + choose_frames(
            stop - first, video.info.fps, num_frames=num_frames, rate=rate, rng=rng
        )
        return np.stack([fit(frame, size, image_fit) for frame in video.frames(chosen.tolist())])


def _segment(info: VideoInfo, start: float, end: float | None) -> tuple[int, int]:
    """Returns (first, stop), the range of frames of a segment in seconds; at least one frame."""
    until = info.duration if end is None else end
    if not (0 <= start < until and start < info.duration):  # NaN is outside too
        raise CorruptRecord(
            f"There is no segment from {start} to {until} s in a video of {info.duration:.2f} s.",
            reason="broken_span",
        )
    first = min(round(start * info.fps), info.num_frames - 1)
    return first, max(min(round(min(until, info.duration) * info.fps), info.num_frames), first + 1)


@contextlib.contextmanager
def opened(encoded: Any) -> Iterator["VideoFile"]:
    """Opens an encoded file.

    Args:
        encoded: the bytes of the file, or a binary file object; only the needed parts are read.

    Raises:
        CorruptRecord: the file is no video in a supported container, or it has no picture
            ("broken_video"); or its frames are far too large ("video_too_large").
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with contextlib.ExitStack() as stack:
        try:
            container = av.open(file, format=_container_format(file), metadata_errors="replace")
            stack.enter_context(container)
            video = VideoFile(container)
        except _DAMAGE as error:
            if isinstance(error, CorruptRecord):
                raise
            raise CorruptRecord(
                f"A video cannot be opened: {error}.", reason="broken_video"
            ) from error
        yield video


def _container_format(file: Any) -> str:
    """Returns the container format, by the first bytes of a file.

    If FFmpeg guessed the format, it would also accept playlists, which name other files and URLs.
    """
    head = file.read(16)
    file.seek(0)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise CorruptRecord(
        f"These bytes begin no video: {head!r}. MP4, MOV, WebM, Matroska and AVI files are read.",
        reason="broken_video",
    )


class VideoFile:
    """An open video file; made by `opened`.

    Attributes:
        info: the header.
    """

    def __init__(self, container: Any):
        self._container, self._stream = container, _picture(container)
        codec = self._stream.codec_context
        if codec is None:
            raise CorruptRecord(
                "A video file has a picture in a coding that FFmpeg does not know.",
                reason="broken_video",
            )
        _check_size(codec.width, codec.height)
        codec.thread_count = 1  # the loader has threads, one for each record
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        duration = self._set_times()
        stated = (self._stream.average_rate, self._stream.base_rate)
        fps = _rate(stated, duration, count=lambda: sum(1 for _ in self._packet_times(0.0)))
        duration = max(duration, 1 / fps)  # the duration of a single frame can be missing
        if not duration <= _MAX_SECONDS:
            raise CorruptRecord(
                f"A video claims {duration} s at {fps} frames per second.", reason="broken_video"
            )
        stream = self._stream
        self._is_constant = self._is_exact and stream.average_rate == stream.base_rate
        num_frames = max(round(duration * fps), 1)
        self.info = VideoInfo(duration, fps, num_frames, codec.width, codec.height)

    def _set_times(self) -> float:
        """Sets when the picture starts, and whether its end is exact. Returns its duration.

        The duration in the header is that of the picture (MP4, MOV, AVI), or reaches from time 0
        to the end of picture and sound (WebM, Matroska), or is missing (a live recording). In the
        last two cases the packets say when the picture starts and ends.
        """
        stream = self._stream
        self._start = float((stream.start_time or 0) * stream.time_base)
        # FFmpeg gives a short Matroska stream the duration of the file.
        is_matroska = self._container.format.name.startswith("matroska")
        self._is_exact = not is_matroska and (stream.duration or 0) > 0
        if self._is_exact:
            return float(stream.duration * stream.time_base)
        claimed = (self._container.duration or 0) / av.time_base
        if stream.start_time is None:
            self._start = next(self._packet_times(0.0), (0.0, 0.0))[0]
        ends: list[float] = []
        if claimed > 0:  # the last keyframe of the picture is before the end of the file
            ends = [end for _, end in self._packet_times(claimed - self._start)]
        if not ends:
            self._is_exact = claimed <= 0
            ends = [end for _, end in self._packet_times(0.0)]
        return max(max(ends, default=self._start + claimed) - self._start, 0.0)

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decodes frames one after the other; memory does not grow with their number.

        If the header has the duration of the picture, missing frames are an error. If it has only
        the duration of picture and sound together (WebM, Matroska), the picture may be shorter:
        then the frames end early.

        Args:
            indices: numbers of the frames, ascending, from 0 to num_frames - 1, at least one.

        Yields:
            uint8[h, w, 3] RGB, upright.

        Raises:
            CorruptRecord: a frame is damaged or missing, or too many frames are before it.
        """
        times = [(index + 0.5) / self.info.fps for index in indices]
        done, shown, end = 0, None, 0.0
        try:
            for time, frame in self._decode(times):
                if shown is None:
                    shown = frame  # is shown in a gap before the first frame, too
                while done < len(times) and times[done] < time:
                    yield self._pixels(shown)
                    done += 1
                if done == len(times):
                    return
                shown = frame
                seconds = float((frame.duration or 0) * (frame.time_base or 0))
                end = time + max(seconds, 1 / self.info.fps)
            while shown is not None and done < len(times) and times[done] < end:
                yield self._pixels(shown)
                done += 1
        except _DAMAGE as error:
            if isinstance(error, CorruptRecord):
                raise
            raise CorruptRecord(f"A video is damaged: {error}.", reason="broken_video") from error
        if done < len(times) and (self._is_exact or not done):
            raise CorruptRecord(
                f"A video of {self.info.duration:.2f} s ends at {end:.2f} s: {len(times) - done} "
                f"of {len(times)} frames are missing.",
                reason="broken_video",
            )

    def _pixels(self, frame: Any) -> np.ndarray:
        """Returns a frame as it is shown: with square pixels, upright."""
        if frame.is_corrupt:
            raise CorruptRecord("A frame of a video is damaged.", reason="broken_video")
        width, height = frame.width, frame.height
        aspect = float(self._stream.sample_aspect_ratio or 1)  # width to height of a pixel
        if aspect > 1:
            width = round(width * min(aspect, _MAX_ASPECT))
        else:
            height = round(height / max(aspect, 1 / _MAX_ASPECT))
        _check_size(width, height)
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90 % 4))

    def _packet_times(self, start: float) -> Iterator[tuple[float, float]]:
        """Yields (start, end) in seconds of the packets from the keyframe before a second on.

        The packets end at the first damage.
        """
        with contextlib.suppress(av.FFmpegError):
            self._seek(start)
            for packet in self._container.demux(self._stream):
                if packet.pts is not None:
                    time = float(packet.pts * packet.time_base)
                    yield time, time + float((packet.duration or 0) * packet.time_base)

    def _seek(self, start: float) -> None:
        """Goes to the last keyframe before `start` seconds of the picture."""
        target = int((start + self._start) / self._stream.time_base)
        try:
            self._container.seek(target, stream=self._stream)
        except av.FFmpegError:  # the file has no index
            self._container.seek(0)

    def _decode(self, times: Sequence[float]) -> Iterator[tuple[float, Any]]:
        """Yields (seconds, frame) in order of time.

        All frames that are on screen at `times` are among them. The first frame is the first of
        these, or an earlier one.
        """
        first = True
        for time, frame in self._decode_after_seek(times, times[0]):
            if first and time > times[0] > 1 / self.info.fps:  # the index of the file is wrong
                yield from self._decode_after_seek(times, 0.0)
                return
            first = False
            yield time, frame

    def _decode_after_seek(
        self, times: Sequence[float], start: float
    ) -> Iterator[tuple[float, Any]]:
        self._seek(start)
        codec = self._stream.codec_context
        time = start
        for count, packet in enumerate(self._container.demux(self._stream)):
            if count >= MAX_DECODED:
                raise CorruptRecord(
                    f"A clip needs more than {MAX_DECODED} frames decoded: the video has too few "
                    "keyframes.",
                    reason="video_too_large",
                )
            # A frame that no other frame refers to is skipped if it is not shown. In H.264 these
            # are half of the frames, or more.
            codec.skip_frame = "DEFAULT" if self._may_show(packet, times) else "NONREF"
            for frame in packet.decode():
                if frame.time is None:
                    time += 1 / self.info.fps
                else:
                    time = frame.time - self._start
                yield time, frame

    def _may_show(self, packet: Any, times: Sequence[float]) -> bool:
        """Returns True if the frame of a packet may be on screen at one of `times`.

        Only at a constant rate the time of a packet says when its frame ends.
        """
        if not self._is_constant or packet.pts is None:
            return True
        time = float(packet.pts * self._stream.time_base) - self._start
        following = bisect.bisect(times, time - 1 / self.info.fps)
        return following < len(times) and times[following] < time + 1 / self.info.fps


def _rate(stated: Sequence[Any], duration: float, count: Callable[[], int]) -> float:
    """Returns frames per second; at a variable rate, that of the closest frames.

    Args:
        stated: rates in the header, the average and the largest; None or 0 = not known.
        duration: seconds.
        count: counts the frames, if no rate is stated.
    """
    fps = max(float(rate or 0) for rate in stated)
    if not fps > 0:
        fps = count() / duration if duration > 0 else 1.0
    return min(max(fps, 1 / _MAX_SECONDS), _MAX_FPS)


def _picture(container: Any) -> Any:
    """Returns the stream with the moving picture; a file can have cover art, too."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        what = "only a cover" if container.streams.video else "no picture, only sound or data"
        raise CorruptRecord(f"A video file has {what}.", reason="broken_video")

    def is_still(stream: Any) -> bool:
        codec = stream.codec_context
        return codec is not None and codec.name in _STILL_CODECS

    # Some tools store a cover as a track. The pictures of some cameras are JPEGs, too.
    return min(streams, key=is_still)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise CorruptRecord(
            f"A video has {width} x {height} pixels, more than {MAX_PIXELS}.",
            reason="video_too_large",
        )
