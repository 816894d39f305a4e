"""Makes random generators by name.

Each item of each named stream has its own generator. A draw does not depend on the order of others.
"""

import zlib

import numpy as np


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Returns the generator of item `index` of a named stream, independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), index])
