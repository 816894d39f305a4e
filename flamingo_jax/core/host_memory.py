"""Memory that was freed stays with the process, where the processor of the host computes.

A training step frees gigabytes of activations and asks for them again a moment later. The GNU C
library gives large pieces back to the system, which clears each page before it hands it out anew.

Not by the variables MALLOC_TRIM_THRESHOLD_ and the like: they are read when a process starts, so
`python -m flamingo_jax.train` would do without.
"""

from __future__ import annotations

import ctypes
import os

from flamingo_jax.core.paths import Path

# Parameters of mallopt (malloc.h): give nothing back, take nothing by mmap, which always gives
# back, and one arena: others use mmap for what is large.
_SETTINGS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
# in /dev: TPUs up to v4, later ones, NVIDIA, AMD
_ACCELERATORS = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")


def keep_freed() -> bool:
    """Returns whether freed memory is kept from now on.

    Where JAX will compute on a CPU, with the GNU C library.

    For programs, since it holds for all of the process; before anything asks JAX for its devices,
    since its threads would have arenas of their own.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        on_cpu = platforms.split(",")[0] == "cpu"
    else:
        on_cpu = not any(found for pattern in _ACCELERATORS for found in Path("/dev").glob(pattern))
    if not on_cpu or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    return all(library.mallopt(*setting) == 1 for setting in _SETTINGS.values())
