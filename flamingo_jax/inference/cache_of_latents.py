"""Latents of images and videos: each is read and encoded once, and kept while there is room.

    visuals --identity--> in the cache     -> latents
                      --> not in the cache -> frames, a few visuals at a time -> encoder -> latents

The same support examples come with many queries. A visual with a known identity is not read again.
A video always has the largest number of frames, and those that it lacks are masked: so neither its
time embeddings nor the compiled shape depend on the videos that it is encoded with. So have the
tiles of an image, if the encoder sees tiles.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.data.images import tiles
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.visuals import Visual, load_frames

# Number of threads that read and decode files, and of visuals that are decoded ahead.
_READERS = 8


@dataclasses.dataclass(frozen=True)
class Passes:
    """The shapes in which visuals are encoded.

    Attributes:
        image_size: side in pixels.
        video_frames: F of a video.
        video_rate: frames per second of a video file.
        frames: frames encoded together.
        multiple: the number of visuals encoded together is a multiple of this, the number of
            devices.
        image_fit: how an image becomes a square.
        background: what is behind transparent pixels.
        max_tiles: the most tiles that an image is cut into; 0 = it is one square.
    """

    image_size: int
    video_frames: int
    video_rate: float
    frames: int
    multiple: int
    image_fit: ImageFit = "pad"
    background: Background = "mean"
    max_tiles: int = 0

    def rows(self, num_frames: int) -> int:
        """Returns the number of visuals with `num_frames` frames each that are encoded together."""
        return -(-max(self.frames // num_frames, 1) // self.multiple) * self.multiple

    def padded(self, num_frames: int) -> int:
        """Returns the number of frames that a visual with so many is padded to."""
        return self.max_tiles or (1 if num_frames == 1 else self.video_frames)


class _Frames(NamedTuple):
    """The frames of a visual, and their number in the mask.

    Attributes:
        pixels: uint8[f, S, S, 3].
        number: of the arrangement of an image's tiles; else 1.
    """

    pixels: np.ndarray
    number: int = 1


def passes_of(
    image_size: int,
    config: InferenceConfig,
    *,
    multiple: int,
    image_fit: ImageFit,
    background: Background,
    max_tiles: int = 0,
) -> Passes:
    """Returns the shapes in which a run encodes visuals; arguments as in `Passes`."""
    return Passes(
        image_size,
        config.video_frames,
        config.video_rate,
        config.images_per_pass,
        multiple,
        image_fit,
        background,
        max_tiles,
    )


class Latents:
    """Returns latents of visuals, and keeps them in a bounded memory."""

    def __init__(
        self,
        encode: Callable[[np.ndarray, np.ndarray], np.ndarray],
        passes: Passes,
        *,
        megabytes: int,
    ) -> None:
        """Starts empty.

        Args:
            encode: (frames uint8[M, F, S, S, 3], frame_mask bool[M, F]) -> latents [M, R, D], in
                every process. The mask of tiles is int8 (`models.vision.FrameMask`).
            passes: shapes.
            megabytes: bound on the memory between two calls.
        """
        self._encode, self._passes, self._bytes = encode, passes, megabytes << 20
        self._known: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()

    def __len__(self) -> int:
        """Returns the number of visuals in the memory."""
        return len(self._known)

    def __call__(self, visuals: Sequence[Visual]) -> np.ndarray:
        """Returns latents [M, R, D] of M >= 1 visuals, in their order.

        Raises:
            PromptError: one of them cannot be read.
        """
        keys = [identity(visual) for visual in visuals]
        found = {key: self._known[key] for key in keys if key in self._known}
        by_key = dict(zip(keys, visuals, strict=True))
        missing = {key: visual for key, visual in by_key.items() if key not in found}
        waiting: dict[int, dict[bytes, _Frames]] = {}  # {number of frames: {identity: frames}}
        for key, frames in self._read(missing):
            num_frames = self._passes.padded(len(frames.pixels))
            group = waiting.setdefault(num_frames, {})
            group[key] = frames
            if len(group) == self._passes.rows(num_frames):
                found.update(self._encode_group(waiting.pop(num_frames), num_frames))
        for num_frames, group in waiting.items():
            found.update(self._encode_group(group, num_frames))
        # A file that was written anew while it was read has another identity now.
        is_same = {
            key: identity(visual) == key
            for key, visual in missing.items()
            if not isinstance(visual, bytes)
        }
        self._keep({key: each for key, each in found.items() if is_same.get(key, True)})
        return np.stack([found[key] for key in keys])

    def _read(self, missing: Mapping[bytes, Visual]) -> Iterator[tuple[bytes, _Frames]]:
        """Reads the frames of visuals, in their order, by several threads."""
        passes, keys = self._passes, iter(missing)

        def load(visual: Visual) -> _Frames:
            size, most = passes.image_size, passes.max_tiles
            pixels = load_frames(
                visual,
                size,
                image_fit=passes.image_fit,
                background=passes.background,
                video_frames=passes.video_frames,
                video_rate=passes.video_rate,
                max_tiles=most,
            )
            return _Frames(*tiles.cut(pixels[0], size, most)) if most else _Frames(pixels)

        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            while some := list(itertools.islice(keys, _READERS)):
                yield from zip(some, readers.map(load, [missing[key] for key in some]), strict=True)

    def _encode_group(
        self, group: dict[bytes, _Frames], num_frames: int
    ) -> dict[bytes, np.ndarray]:
        """Latents of visuals that are padded to the same number of frames."""
        rows, size = self._passes.rows(num_frames), self._passes.image_size
        frames = np.zeros((rows, num_frames, size, size, 3), np.uint8)
        mask = np.zeros((rows, num_frames), np.int8 if self._passes.max_tiles else bool)
        for row, (pixels, number) in enumerate(group.values()):
            frames[row, : len(pixels)], mask[row, : len(pixels)] = pixels, number
        latents = self._encode(frames, mask)
        return {key: latents[row].copy() for row, key in enumerate(group)}

    def _keep(self, found: dict[bytes, np.ndarray]) -> None:
        for key, latents in found.items():
            self._known[key] = latents
            self._known.move_to_end(key)
        of_one = max((latents.nbytes for latents in found.values()), default=1)
        while len(self._known) > self._bytes // of_one:
            self._known.popitem(last=False)
