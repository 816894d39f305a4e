"""Makes random generators by name.

Each item of each named stream has its own generator. A draw does not depend on the order of others.
"""

import zlib

import numpy as np

from flamingo_jax.core import ranges

# A seed has 32 bits: of a larger one JAX drops the rest, NumPy takes none below 0.
RANGE = ranges.whole(0, (1 << 32) - 1)


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Returns the generator of item `index` of a named stream, independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), index])


def check(seed: int, name: str = "seed") -> None:
    """Checks that a seed is in RANGE.

    Raises:
        ValueError: it is not; the message has its name.
    """
    if not RANGE.holds(seed):
        raise ValueError(f"{name} is {seed!r}; expected {RANGE}.")
