"""The content hash of an export's weights: what identifies a frozen tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.streamed import Streamed
from flamingo_jax.core import trees
from flamingo_jax.core.paths import Path


def hashed(path: str, leaf: Any, digest: Any) -> Any:
    """Returns a `Streamed` weight that updates the content hash while it is written.

    Other weights are returned unchanged.
    """
    if not isinstance(leaf, Streamed):
        return leaf

    def parts() -> Iterator[np.ndarray]:
        digest.update(trees.hash_heading(path, leaf))
        for part in leaf.parts():
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
            yield part

    return dataclasses.replace(leaf, parts=parts)


def hash_of(flat: Mapping[str, Any], directory: Path) -> str:
    """Returns the content hash; weights that are partly on other hosts are read from disk."""
    if all(getattr(leaf, "is_fully_addressable", True) for leaf in flat.values()):
        return trees.content_hash(trees.unflatten(flat))
    return trees.content_hash(trees.unflatten({name: _Stored(directory, name) for name in flat}))


class _Stored:
    """A weight that is read from disk when numpy converts it, so only one is in memory."""

    def __init__(self, directory: Path, name: str):
        self._directory, self._name = directory, name

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return arrays.read_here(self._directory, self._name)
