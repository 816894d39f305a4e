"""Visuals: the images and videos of a prompt, and their frames.

    Image("cat.jpg"), a PIL image, bytes, uint8[H, W, 3]   -> 1 frame
    uint8[H, W, 4]                                         -> 1 frame, RGB and transparency
    Video("clip.mp4", start=12.0, end=20.0)                -> frames at 3 per second, from 12.0 s on
    uint8[F, H, W, 3]                                      -> F frames, taken as 3 per second

A video has at most 30 frames at 3 per second (paper, B.1.2). Of a longer one, the first 10 seconds
are taken: the paper does not say which part it takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flamingo_jax.core.paths import Path, PathLike, regular
from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.data.images import colours, tiles, video
from flamingo_jax.data.images import read as images

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
        name: its name in messages.
        read: returns encoded bytes, or uint8[H, W, 3].
        source: returns bytes that differ if the image does, where these are cheaper than the image;
            None = what `read` returns.
    """

    name: str
    read: Callable[[], bytes | np.ndarray] = dataclasses.field(compare=False)
    source: Callable[[], bytes] | None = dataclasses.field(default=None, compare=False)


Visual: TypeAlias = "Image | Video | Deferred | PIL.Image.Image | np.ndarray | bytes | Path"
VISUAL_TYPES = (Image, Video, Deferred, PIL.Image.Image, np.ndarray, bytes, Path)


def from_file(path: PathLike) -> Image | Video:
    """Returns `Video(path)` if the file name has the suffix of a video, else `Image(path)`."""
    return Video(path) if str(path).lower().endswith(VIDEO_SUFFIXES) else Image(path)


def load_frames(
    visual: Visual,
    image_size: int,
    *,
    image_fit: ImageFit = "pad",
    background: Background = "mean",
    video_frames: int = VIDEO_FRAMES,
    video_rate: float = VIDEO_RATE,
    max_tiles: int = 0,
) -> UInt8[np.ndarray, "F H W 3"]:
    """Reads the frames of an image (F = 1) or a video: squares, or an image before it is cut.

    A file, its bytes and the PIL image of it give the same frame; so does a uint8 array of the
    image's pixels if the image is upright, and is not a JPEG that is decoded at reduced size.

    Args:
        visual: one of the forms above.
        image_size: S, side in pixels.
        image_fit: how an image becomes a square, as in training.
        background: what is behind transparent pixels, as in training.
        video_frames: the most frames of a video.
        video_rate: frames per second of a video file.
        max_tiles: 0 = a frame is a square of `image_size`. Else it is the canvas of an image
            (`data.images.tiles.canvas`), whose tiles have this side; `image_fit` says nothing.

    Raises:
        PromptError: a missing file, a file that is neither an image nor a video, a segment outside
            of the video, an array with another shape or type, or with too many frames, or a video
            for a model that sees tiles.
    """
    if isinstance(visual, Path):
        visual = from_file(visual)
    if isinstance(visual, Deferred):
        what = f"{visual.name!r}"
        with _unreadable(what):
            visual = visual.read()
    else:
        what = f"{len(visual)} bytes" if isinstance(visual, bytes) else "an array"
    is_video = isinstance(visual, Video) or (isinstance(visual, np.ndarray) and visual.ndim == 4)
    if max_tiles and is_video:
        raise PromptError(
            "prompt: got a video; this model sees an image as tiles, and no videos. Give single "
            "frames of it as images."
        )
    if isinstance(visual, Video):
        return _clip(visual, image_size, video_frames, video_rate, image_fit)
    encoded = visual if isinstance(visual, bytes) else None
    if isinstance(visual, Image):
        path, what = existing(visual), f"the file {str(visual.path)!r}"
        with _unreadable(what):
            encoded = regular(path).read_bytes()
    elif isinstance(visual, PIL.Image.Image):
        encoded, what = images.encoded_of(visual), "a PIL image"
    if encoded is not None:
        with _unreadable(what):
            if max_tiles:
                return tiles.decode(encoded, image_size, max_tiles, background)[None]
            return images.decode(encoded, image_size, image_fit, background)[None]
    assert isinstance(visual, PIL.Image.Image | np.ndarray)  # for mypy: the rest is done
    frames = as_array(visual)
    _check_array(frames, what, video_frames)
    if max_tiles:
        rgb = colours.to_rgb(PIL.Image.fromarray(frames), background)
        return tiles.canvas(rgb, image_size, max_tiles)[None]
    frames = frames[None] if frames.ndim == 3 else frames
    if frames.shape[1:] == (image_size, image_size, 3):
        return frames
    return np.stack([_fitted(frame, image_size, image_fit, background) for frame in frames])


def as_array(visual: np.ndarray | PIL.Image.Image) -> np.ndarray:
    """Returns an array as it is; of a PIL image its upright pixels, RGB or RGBA, uint8[H, W, c].

    Raises:
        PromptError: a PIL image is damaged, or its file was closed.
    """
    if isinstance(visual, np.ndarray):
        return visual
    with _unreadable("a PIL image"):
        return np.asarray(colours.to_rgb_or_rgba(colours.upright(visual)))


def _fitted(
    frame: np.ndarray, image_size: int, image_fit: ImageFit, background: Background
) -> np.ndarray:
    if frame.shape[-1] == 4:
        frame = np.asarray(colours.to_rgb(PIL.Image.fromarray(frame), background))
    return images.fit(frame, image_size, image_fit)


def _check_array(array: np.ndarray, what: str, most: int) -> None:
    is_frames = array.ndim in (3, 4) and array.shape[-1] in (3, 4) and array.size
    if array.dtype != np.uint8 or not is_frames:
        raise PromptError(
            f"prompt: got {what} {array.dtype}{list(array.shape)}; expected uint8[H, W, 3], or "
            "uint8[F, H, W, 3] for a video. Of another image, give the file or the PIL image: it "
            "has the palette and the range of its numbers."
        )
    if array.ndim == 4 and len(array) > most:
        raise PromptError(
            f"prompt: got {what} of {len(array)} frames; expected at most {most} "
            "(config.inference.video_frames). Leave some out."
        )


def existing(visual: Image | Video) -> Path:
    """Returns the path of a file.

    Raises:
        PromptError: there is no such file.
    """
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
    path = existing(visual)
    try:
        with regular(path).open("rb") as file:
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


@contextlib.contextmanager
def _unreadable(what: str) -> Iterator[None]:
    """Turns the errors of a damaged image into PromptError."""
    try:
        yield
    except Exception as error:  # PIL's decoders raise errors of many kinds
        raise PromptError(
            f"prompt: {what} cannot be read as an image ({error}). Expected JPEG, PNG or WebP."
        ) from error
