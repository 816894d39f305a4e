"""Finds accelerators by their device files, without asking JAX, which would start them."""

from __future__ import annotations

from flamingo_jax.core.paths import Path

TPU = ("accel[0-9]*", "vfio/[0-9]*")  # up to v4; from v5e on
GPU = ("nvidia[0-9]*", "kfd")  # NVIDIA; AMD


def has_device(*patterns: str) -> bool:
    """Returns True if a file in /dev matches one of the patterns."""
    return any(found for pattern in patterns for found in Path("/dev").glob(pattern))
