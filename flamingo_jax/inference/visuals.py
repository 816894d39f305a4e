"""Visuals: the images and videos of a prompt, their identities and their frames.

    Image("cat.jpg"), a PIL image, bytes, uint8[H, W, 3]   -> 1 frame
    Video("clip.mp4", start=12.0, end=20.0)                -> frames at 3 per second, from 12.0 s on
    uint8[F, H, W, 3]                                      -> F frames, taken as 3 per second

A video has at most 30 frames at 3 per second (paper, B.1.2). Of a longer one, the first 10 seconds
are taken: the paper does not say which part it takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.config import ImageFit
from flamingo_jax.data.images import read as images
from flamingo_jax.data.images import video

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
VIDEO_FRAMES = 30
VIDEO_RATE = 3.0  # frames per second


class PromptError(ValueError):
    """A prompt that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image file in a prompt, local or gs://: `[Image("cat.jpg"), "Output:"]`."""

    path: PathLike


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file in a prompt, local or gs://, or a segment of it.

    Attributes:
        path: the file: MP4, MOV, WebM, Matroska or AVI.
        start: seconds at which the segment begins.
        end: seconds at which it ends; None = with the video.
    """

    path: PathLike
    start: float = 0.0
    end: float | None = None


@dataclasses.dataclass(frozen=True)
class Deferred:
    """An image that a function reads when it is needed, such as a record of a dataset.

    Attributes:
        name: its identity, also in messages: two with one name are the same image.
        read: returns encoded bytes, or uint8[H, W, 3].
    """

    name: str
    read: Callable[[], bytes | np.ndarray] = dataclasses.field(compare=False)


Visual: TypeAlias = "Image | Video | Deferred | PIL.Image.Image | np.ndarray | bytes | Path"
VISUAL_TYPES = (Image, Video, Deferred, PIL.Image.Image, np.ndarray, bytes, Path)


def from_file(path: PathLike) -> Image | Video:
    """Returns `Video(path)` if the file name has the suffix of a video, else `Image(path)`."""
    return Video(path) if str(path).lower().endswith(VIDEO_SUFFIXES) else Image(path)


def identity(visual: Visual) -> bytes:
    """Returns 16 bytes that are the same for the same visual, without decoding it.

    The identity of a file is its path, size, time of change and segment; of a `Deferred`, its name;
    of other visuals, their content.

    Raises:
        PromptError: the file is missing.
    """
    if isinstance(visual, Path):
        visual = from_file(visual)
    if isinstance(visual, Image | Video):
        path = _existing(visual)
        segment = (visual.start, visual.end) if isinstance(visual, Video) else ()
        content = f"file {path} {path.stat().length} {path.stat().mtime} {segment}".encode()
    elif isinstance(visual, Deferred):
        content = f"deferred {visual.name}".encode()
    elif isinstance(visual, bytes):
        content = visual
    else:
        array = np.asarray(visual)
        kind = f"{array.dtype}{array.shape}{getattr(visual, 'mode', '')}"
        content = kind.encode() + array.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def load_frames(
    visual: Visual,
    image_size: int,
    *,
    image_fit: ImageFit = "pad",
    video_frames: int = VIDEO_FRAMES,
    video_rate: float = VIDEO_RATE,
) -> UInt8[np.ndarray, "F S S 3"]:
    """Reads the frames of an image (F = 1) or a video.

    Args:
        visual: one of the forms above.
        image_size: S, side in pixels.
        image_fit: how an image becomes a square, as in training.
        video_frames: the most frames of a video.
        video_rate: frames per second of a video file.

    Raises:
        PromptError: a missing file, a file that is neither an image nor a video, a segment outside
            of the video, or an array with another shape or type, or with too many frames.
    """
    if isinstance(visual, Path):
        visual = from_file(visual)
    if isinstance(visual, Deferred):
        what, visual = f"{visual.name!r}", visual.read()
    else:
        what = f"{len(visual)} bytes" if isinstance(visual, bytes) else "an array"
    if isinstance(visual, Video):
        return _clip(visual, image_size, video_frames, video_rate, image_fit)
    if isinstance(visual, Image):
        data, what = _existing(visual).read_bytes(), f"the file {str(visual.path)!r}"
        return _decoded(data, image_size, image_fit, what)
    if isinstance(visual, bytes):
        return _decoded(visual, image_size, image_fit, what)
    if isinstance(visual, np.ndarray):
        is_frames = visual.ndim in (3, 4) and visual.shape[-1] == 3 and visual.size
        if visual.dtype != np.uint8 or not is_frames:
            raise PromptError(
                f"prompt: got {what} {visual.dtype}{list(visual.shape)}; expected uint8[H, W, 3], "
                "or uint8[F, H, W, 3] for a video."
            )
        if visual.ndim == 4 and len(visual) > video_frames:
            raise PromptError(
                f"prompt: got {what} of {len(visual)} frames; expected at most {video_frames} "
                "(config.inference.video_frames). Leave some out."
            )
    frames = visual if isinstance(visual, np.ndarray) else np.asarray(visual.convert("RGB"))
    frames = frames[None] if frames.ndim == 3 else frames
    if frames.shape[1:3] == (image_size, image_size):
        return frames
    return np.stack([images.fit(frame, image_size, image_fit) for frame in frames])


def _existing(visual: Image | Video) -> Path:
    path = Path(visual.path)
    if not path.exists():
        kind = "video" if isinstance(visual, Video) else "image"
        raise PromptError(
            f"prompt: there is no {kind} file {str(path)!r}. Check the path; it is relative to the "
            "current directory."
        )
    return path


def _clip(
    visual: Video, image_size: int, num_frames: int, rate: float, image_fit: ImageFit
) -> np.ndarray:
    path = _existing(visual)
    try:
        with path.open("rb") as file:
            return video.decode_clip(
                file,
                image_size,
                num_frames=num_frames,
                rate=rate,
                start=visual.start,
                end=visual.end,
                image_fit=image_fit,
            )
    except (ValueError, OSError) as error:
        raise PromptError(
            f"prompt: the file {str(path)!r} cannot be read as a video ({error})"
        ) from error


def _decoded(data: bytes, image_size: int, image_fit: ImageFit, what: str) -> np.ndarray:
    try:
        return images.decode(data, image_size, image_fit)[None]
    except (ValueError, OSError) as error:
        raise PromptError(
            f"prompt: {what} cannot be read as an image ({error}). Expected JPEG, PNG or WebP."
        ) from error
