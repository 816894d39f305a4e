"""Latents of the images and videos of a batch.

Each is read and encoded once, and kept for as long as there is room.

    visuals -> identities -+-> latents in the cache
                           +-> frames, of a few visuals at a time -> vision encoder and resampler -> latents

Support examples come again with other queries; what is known by its identity is not even read
again. A video always takes as many places as a video can have frames, the rest of them masked, so
that neither its time embeddings nor the compiled shape depend on what it is encoded with.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from flamingo_jax.data.config import ImageFit
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.visuals import Visual, identity, load_frames

# threads that read and decode files, and how many visuals may be decoded before they are encoded
_READERS = 8


@dataclasses.dataclass(frozen=True)
class Passes:
    """How visuals go through the encoder.

    Attributes:
        image_size: side in pixels.
        video_frames: F, the places of a video.
        video_rate: frames per second of a video file.
        frames: frames encoded together.
        multiple: the number of visuals encoded together is a multiple of this, the number of
            devices.
        image_fit: how an image becomes a square.
    """

    image_size: int
    video_frames: int
    video_rate: float
    frames: int
    multiple: int
    image_fit: ImageFit = "pad"

    def rows(self, places: int) -> int:
        """Visuals of so many places that are encoded together."""
        return -(-max(self.frames // places, 1) // self.multiple) * self.multiple


def passes_of(
    image_size: int, config: InferenceConfig, *, multiple: int, image_fit: ImageFit
) -> Passes:
    """Returns how visuals go through an encoder with the settings of a run; arguments as `Passes`."""
    return Passes(
        image_size,
        config.video_frames,
        config.video_rate,
        config.images_per_pass,
        multiple,
        image_fit,
    )


class Latents:
    """Latents of visuals, with a bounded memory."""

    def __init__(
        self,
        encode: Callable[[np.ndarray, np.ndarray], np.ndarray],
        passes: Passes,
        *,
        megabytes: int,
    ) -> None:
        """Starts empty.

        Args:
            encode: (uint8[M, F, S, S, 3] frames, bool[M, F] mask) to latents [M, R, D], of every
                process.
            passes: shapes.
            megabytes: how much is kept beyond the visuals of the last batch.
        """
        self._encode, self._passes, self._bytes = encode, passes, megabytes << 20
        self._known: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()

    def __len__(self) -> int:
        """How many visuals are known."""
        return len(self._known)

    def __call__(self, visuals: Sequence[Visual]) -> np.ndarray:
        """Latents [M, R, D] of M >= 1 visuals, in their order.

        Raises:
            PromptError: one of them cannot be read.
        """
        keys = [identity(visual) for visual in visuals]
        found = {key: self._known[key] for key in keys if key in self._known}
        missing = {
            key: visual for key, visual in zip(keys, visuals, strict=True) if key not in found
        }
        waiting: dict[int, dict[bytes, np.ndarray]] = {}  # by number of places
        for key, frames in self._read(missing):
            places = 1 if len(frames) == 1 else self._passes.video_frames
            group = waiting.setdefault(places, {})
            group[key] = frames
            if len(group) == self._passes.rows(places):
                found.update(self._encoded(waiting.pop(places), places))
        for places, group in waiting.items():
            found.update(self._encoded(group, places))
        self._keep(found)
        return np.stack([found[key] for key in keys])

    def _read(self, missing: Mapping[bytes, Visual]) -> Iterator[tuple[bytes, np.ndarray]]:
        """Frames of visuals, in their order, read by several threads."""
        passes, keys = self._passes, iter(missing)
        load = functools.partial(
            load_frames,
            image_size=passes.image_size,
            image_fit=passes.image_fit,
            video_frames=passes.video_frames,
            video_rate=passes.video_rate,
        )
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            while some := list(itertools.islice(keys, _READERS)):
                yield from zip(some, readers.map(load, [missing[key] for key in some]), strict=True)

    def _encoded(self, group: dict[bytes, np.ndarray], places: int) -> dict[bytes, np.ndarray]:
        """Latents of visuals with the same number of places."""
        rows, size = self._passes.rows(places), self._passes.image_size
        frames, mask = (
            np.zeros((rows, places, size, size, 3), np.uint8),
            np.zeros((rows, places), bool),
        )
        for row, real in enumerate(group.values()):
            frames[row, : len(real)], mask[row, : len(real)] = real, True
        latents = self._encode(frames, mask)
        return {key: latents[row].copy() for row, key in enumerate(group)}

    def _keep(self, found: dict[bytes, np.ndarray]) -> None:
        for key, latents in found.items():
            self._known[key] = latents
            self._known.move_to_end(key)
        of_one = next(iter(found.values())).nbytes
        while len(self._known) > self._bytes // of_one:
            self._known.popitem(last=False)
