"""Computes a fingerprint of weights on their devices.

No weight leaves its device. The result does not depend on how weights are sharded.
"""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.core import trees
from flamingo_jax.core.notation import Array
from flamingo_jax.core.precision import arrays_of
from flamingo_jax.core.stack import Layers, stacked


def fingerprint(params: trees.Params) -> str:
    """Returns 32 hexadecimal digits that identify the paths, dtypes, shapes and values.

    All processes call it together. Each value's bits, as an integer, are multiplied by an odd
    number that depends on its index, and summed: the order of summation does not matter. This
    detects accidents; `trees.content_hash` also detects deliberate changes.

    Weights that are `core.stack.unrolled` have the same fingerprint as stacked ones.
    """
    flat = arrays_of(trees.flatten(params))
    sums = np.asarray(_checksums(tuple(flat.values())))
    digest = hashlib.blake2b(digest_size=16)
    shapes = jax.eval_shape(lambda: [stacked(leaf) for leaf in flat.values()])
    for path, leaf, total in zip(flat, shapes, sums.tolist(), strict=True):
        digest.update(f"{path}|{leaf.dtype}|{leaf.shape}|{total}\n".encode())
    return digest.hexdigest()


@jax.jit
def _checksums(leaves: tuple[Array | Layers, ...]) -> Array:
    return jnp.stack([_checksum(stacked(leaf)) for leaf in leaves])


def _checksum(leaf: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).astype(
        jnp.uint32
    )
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis, size in enumerate(leaf.shape):  # modulo 2**32, like all numbers here
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    # 2**32 divided by the golden ratio: factors of neighbours differ much
    factor = place * jnp.uint32(2654435769) | jnp.uint32(1)
    return jnp.sum((bits ^ (bits >> 15)) * factor, dtype=jnp.uint32)
