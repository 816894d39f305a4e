"""Makes random generators by name.

Each item of each named stream has its own generator. A draw does not depend on the order of others.
"""

import zlib

import numpy as np


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Returns the generator of item `index` of a named stream, independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), index])


def check(seed: int, name: str = "seed") -> None:
    """Checks that a seed has 32 bits: of a larger one JAX drops the rest, NumPy takes none below 0.

    Raises:
        ValueError: it has not; the message has its name.
    """
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"{name} is {seed}; expected a number from 0 to {(1 << 32) - 1}.")
