"""The identity of a visual: a hash of its content, by which latents, features and answers are kept.

    Image(path), bytes, a PIL image that is not loaded    the bytes of the file
    Video(path)                                           the bytes of the file, and the segment
    a PIL image, uint8[H, W, 3]                           the upright pixels with their transparency
    Deferred                                              what it reads

A path and a time of change are not enough: a camera writes the same file again and again, and a
copy keeps the time of its source. The hash of a file is remembered only while the file is unchanged
by all that the file system says (its number, size, and times in nanoseconds), and only if it was
last changed long before it was read: a change in the same tick of the clock cannot be seen.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import PIL.Image

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path
from flamingo_jax.data.images import read as images
from flamingo_jax.inference.visuals import (
    Deferred,
    Image,
    PromptError,
    Video,
    Visual,
    as_array,
    existing,
    from_file,
)

Identify: TypeAlias = "Callable[[Visual], bytes]"

_SETTLED = 60.0  # seconds after a change in which the hash of a file is not remembered
_MOST = 1 << 18  # files remembered

# {what the file system says: hash}
_known: dict[tuple[int | str, ...], bytes] = {}


def identity(visual: Visual) -> bytes:
    """Returns 16 bytes that are the same for visuals of the same content, without decoding them.

    Raises:
        PromptError: the file is missing or cannot be read, or a PIL image is damaged.
    """
    if isinstance(visual, Path):
        visual = from_file(visual)
    if isinstance(visual, Deferred):
        if visual.source is None:
            return identity(visual.read())
        return _hash("deferred", visual.source())
    if isinstance(visual, Video):
        end = None if visual.end is None else float(visual.end)
        return _hash(f"video {float(visual.start)} {end}", _of_file(existing(visual)))
    if isinstance(visual, Image):
        return _hash("image", _of_file(existing(visual)))
    encoded = visual if isinstance(visual, bytes) else None
    if isinstance(visual, PIL.Image.Image):
        encoded = images.encoded_of(visual)
    if encoded is not None:
        return _hash("image", _hash("", encoded))
    assert not isinstance(visual, bytes)
    array = as_array(visual)
    return _hash(f"array {array.dtype}{array.shape}", np.ascontiguousarray(array).data)


def each_once() -> Identify:
    """Returns `identity`, which computes that of each object once. It is for one call.

    The prompts of a call share the objects of their examples.
    """
    found: dict[int, tuple[Visual, bytes]] = {}  # the object is kept, so that its number stays its

    def remembered(visual: Visual) -> bytes:
        if id(visual) not in found:
            found[id(visual)] = visual, identity(visual)
        return found[id(visual)][1]

    return remembered


def _hash(kind: str, content: bytes | memoryview) -> bytes:
    # Features on disk outlive the code that made pixels of the content.
    digest = hashlib.blake2b(f"{images.VERSION} {kind}\0".encode(), digest_size=16)
    digest.update(content)
    return digest.digest()


def _of_file(path: Path) -> bytes:
    """Returns the hash of a file's bytes."""
    try:
        state, changed = _state(path)
        if state in _known:
            return _known[state]
        digest = hashlib.blake2b(f"{images.VERSION} \0".encode(), digest_size=16)
        for block in paths.blocks(path):
            digest.update(block)
    except OSError as error:
        raise PromptError(
            f"prompt: the file {str(path)!r} cannot be read ({error.strerror or error})."
        ) from error
    found = digest.digest()
    if time.time() - changed > _SETTLED and _state(path)[0] == state:
        if len(_known) >= _MOST:
            _known.clear()
        _known[state] = found
    return found


def _state(path: Path) -> tuple[tuple[int | str, ...], float]:
    """Returns what the file system says about a file, and the time of its last change, seconds."""
    if paths.is_local(path):
        stat = os.stat(path)
        times = stat.st_mtime_ns, stat.st_ctime_ns
        return (stat.st_dev, stat.st_ino, stat.st_size, *times), max(times) / 1e9
    # The time of an object in a bucket is set by the server when it is written.
    remote = path.stat()
    return (str(path), remote.length, str(remote.mtime)), float(remote.mtime)
