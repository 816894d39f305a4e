"""Keeps freed memory in the process, if JAX computes on the CPU of the host.

A training step frees gigabytes of activations and allocates them again a moment later. The GNU C
library returns large blocks to the system, which clears each page before it gives it out again.

The environment variables MALLOC_TRIM_THRESHOLD_ and others would do the same, but they are read
when a process starts: `python -m flamingo_jax.train` alone would not have them.
"""

from __future__ import annotations

import ctypes
import os

from flamingo_jax.core import devices

# Parameters of mallopt (malloc.h): return nothing; do not allocate by mmap, which always returns
# its memory; use one arena, because other arenas use mmap for large blocks.
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep_freed() -> bool:
    """Keeps the memory that is freed from now on; returns False if it cannot or should not.

    It does so with the GNU C library, where JAX will compute on a CPU. Programs call it, since it
    holds for the whole process, and before anything asks JAX for its devices, since JAX's threads
    would get arenas of their own.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        on_cpu = platforms.split(",")[0] == "cpu"
    else:
        on_cpu = not devices.has_device(*devices.TPU, *devices.GPU)
    if not on_cpu or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    return all(library.mallopt(*setting) == 1 for setting in _SETTINGS.values())
