"""Checks the values of weights while they are read: they are finite, and fit into their dtype.

Files that hold anything else are refused. A NaN in one weight spreads to all answers of a model, or
makes every comparison of an evaluation false. It comes from training that diverged, from float16
that was too small, or from a bad copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.checkpoint.arrays import few
from flamingo_jax.conversion.reading import ConversionError, Weights

_BLOCK = 1 << 20  # elements; the memory of one check

# dtype -> (unsigned integer of the same size, bits of the exponent, which are all set in Inf, NaN)
_EXPONENTS = {
    np.dtype(jnp.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float16): (np.uint16, 0x7C00),
}


def count_not_finite(array: np.ndarray) -> int:
    """Returns how many elements are NaN or infinite; needs memory for a block of 2**20 only."""
    return sum(_in_block(block) for block in _blocks(array))


def check_finite(weights: Mapping[str, np.ndarray]) -> None:
    """Checks weights that are in memory.

    Raises:
        ConversionError: if a number is not finite; names the weights.
    """
    found = {name: (count_not_finite(array), array.size) for name, array in weights.items()}
    if bad := {name: count for name, count in found.items() if count[0]}:
        raise _refusal(bad)


class Checked:
    """Weights that are counted when they are read.

    Args:
        files: the weights.
        names: those that a conversion reads. If one of them is not finite, the others are counted
            too, so that one error names them all.
    """

    def __init__(self, files: Weights, names: Iterable[str]) -> None:
        self._files, self._unchecked = files, dict.fromkeys(names)

    def names(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self._files.names()

    def read(self, name: str) -> np.ndarray:
        """Returns one array as it is stored.

        Raises:
            ConversionError: if it, or another one, holds a number that is not finite.
        """
        array = self._files.read(name)
        if name in self._unchecked:
            del self._unchecked[name]
            if wrong := count_not_finite(array):
                raise _refusal({name: (wrong, array.size), **self._rest()})
        return array

    def _rest(self) -> dict[str, tuple[int, int]]:
        found = {}
        for name in self._unchecked:
            array = self._files.read(name)
            if wrong := count_not_finite(array):
                found[name] = (wrong, array.size)
        return found


def cast(x: np.ndarray, dtype: np.dtype, names: Sequence[str]) -> np.ndarray:
    """Returns x in another dtype.

    Args:
        x: any dtype.
        dtype: of the result.
        names: the weights of the files that x is made of, for the message.

    Raises:
        ConversionError: if a number becomes infinite.
    """
    with np.errstate(over="ignore"):
        result = np.asarray(x, dtype)
    is_narrower = jnp.finfo(dtype).max < jnp.finfo(x.dtype).max
    if is_narrower and (wrong := count_not_finite(result)):
        raise ConversionError(
            f"{wrong} numbers of {', '.join(names)} ({x.dtype}) are too large for {dtype}. Nothing "
            "is written. Check the files, or give another --dtype."
        )
    return result


def digest(array: np.ndarray) -> bytes:
    """Returns a hash of the shape and the values; the dtype does not count."""
    found = hashlib.sha256(repr(array.shape).encode())
    for row in array:
        found.update(np.asarray(row, np.float32).tobytes())
    return found.digest()


def _refusal(found: Mapping[str, tuple[int, int]]) -> ConversionError:
    named = [f"{name}: {wrong:,} of {size:,} numbers" for name, (wrong, size) in found.items()]
    return ConversionError(
        f"{len(named)} weights are not finite (NaN or Inf): {few(named, separator='; ')}. Nothing "
        "is written. Copy the files again; if they are the same, the model broke where it was "
        "trained or saved."
    )


def _in_block(block: np.ndarray) -> int:
    if not np.issubdtype(block.dtype, np.floating) and block.dtype not in _EXPONENTS:
        return 0
    if block.dtype in _EXPONENTS:
        # numpy's isfinite is slow for these
        integer, exponent = _EXPONENTS[block.dtype]
        bits = np.ascontiguousarray(block).view(integer)
        return int(np.count_nonzero((bits & integer(exponent)) == exponent))
    return block.size - int(np.count_nonzero(np.isfinite(block)))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    if array.size <= _BLOCK:
        yield array
    elif array.flags.c_contiguous:
        flat = array.reshape(-1)
        yield from (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    else:
        for part in array:
            yield from _blocks(part)
