"""Random numbers by name.

Each item of each named stream has a generator of its own, so no draw depends on the order of the
others.
"""

import zlib

import numpy as np


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Returns the generator of item `index` of a named stream.

    Streams, seeds and items are independent of each other.
    """
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), index])
