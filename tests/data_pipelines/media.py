"""Makes small videos for tests."""

import fractions
import pathlib
import tempfile
from collections.abc import Sequence

import av
import numpy as np


def grey_frames(
    number: int, *, height: int = 48, width: int = 64, step: int = 5
) -> list[np.ndarray]:
    """Returns frames of a single grey. Frame k has the value step * k, by which a test finds it."""
    return [np.full((height, width, 3), step * k, np.uint8) for k in range(number)]


def number_of(frame: np.ndarray, step: int = 5) -> int:
    """Returns the number of a frame of `grey_frames`, from the middle of the picture.

    Coding changes a grey by a level or two.
    """
    top, left = frame.shape[0] // 4, frame.shape[1] // 4
    return round(float(frame[top:-top, left:-left].mean()) / step)


def mp4(
    frames: Sequence[np.ndarray],
    fps: float = 10,
    *,
    suffix: str = ".mp4",
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    keyframe_every: int = 12,
    rotation: int = 0,
    faststart: bool = False,
    sound: bool = False,
    aspect: tuple[int, int] | None = None,
    cover: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encodes a video.

    Args:
      frames: uint8[h, w, 3] each, all of one size; empty: a file without a picture, if it has
        sound.
      fps: frames per second.
      suffix: of the file, which decides its container: .mp4, .mov, .webm, .mkv or .avi.
      codec: a video encoder of FFmpeg.
      times: seconds at which the frames appear, instead of `fps`.
      keyframe_every: frames from one keyframe to the next.
      rotation: degrees counter-clockwise by which a player must turn the picture.
      faststart: True to store the index before the frames, as in files for the web.
      sound: True to add one second of silence.
      aspect: width and height of a pixel.
      cover: True to store a red picture as cover art, before the video.
      options: further options of the container.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / f"video{suffix}"
        movflags = {"movflags": "faststart"} if faststart else {}
        with av.open(str(path), "w", options=movflags | (options or {})) as container:
            silence = container.add_stream("aac", rate=16000, layout="mono") if sound else None
            art = _add_cover(container) if cover else None
            if frames:
                stream = _add_video(container, frames, fps, codec, aspect)
                _write_pictures(container, stream, frames, times, keyframe_every, rotation, art)
            elif art is not None:
                _write_cover(container, art)
            if silence is not None:
                _write_silence(container, silence)
        return path.read_bytes()


def _add_video(container, frames, fps, codec, aspect):
    stream = container.add_stream(codec, rate=fractions.Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    if aspect:
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(*aspect)
    return stream


def _add_cover(container):
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic
    return stream


def _write_cover(container, stream):
    red = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    frame = av.VideoFrame.from_ndarray(red, format="rgb24")
    frame.pts, frame.time_base = 0, fractions.Fraction(1, 1)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _write_pictures(container, stream, frames, times, keyframe_every, rotation, art):
    stream.bit_rate = 4_000_000
    stream.codec_context.gop_size = keyframe_every
    if times is not None:
        stream.codec_context.max_b_frames = 0
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
    if rotation:
        stream.set_display_rotation(rotation)
    if art is not None:
        _write_cover(container, art)
    for k, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if times is not None:
            frame.pts, frame.time_base = round(times[k] * 1000), fractions.Fraction(1, 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _write_silence(container, stream):
    frame = av.AudioFrame.from_ndarray(
        np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate, frame.pts, frame.time_base = 16000, 0, fractions.Fraction(1, 16000)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
