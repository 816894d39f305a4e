"""Changes the axes of arrays in publishers' files: the functions that the rules of a mapping use.

Linear (PyTorch)  [out, in]      --transpose-->  [in, out]
query, key, value [H*K, D]       --heads_in--->  [D, H, K]
output            [D, H*K]       --heads_out-->  [H, K, D]
convolution       [O, I, kh, kw] --conv------->  [kh, kw, I, O]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]


def identity(x: np.ndarray) -> np.ndarray:
    """Returns x unchanged."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out]."""
    return x.T


def conv(x: np.ndarray) -> np.ndarray:
    """[O, I, kh, kw] -> [kh, kw, I, O]."""
    return x.transpose(2, 3, 1, 0)


def flat(x: np.ndarray) -> np.ndarray:
    """[...] -> [n]."""
    return x.reshape(-1)


def scalar(x: np.ndarray) -> np.ndarray:
    """[1, ..., 1] -> []."""
    return x.reshape(())


def heads_in(num_heads: int, head_dim: int) -> Transform:
    """[H*K, D] -> [D, H, K]."""
    return lambda x: x.reshape(num_heads, head_dim, -1).transpose(2, 0, 1)


def heads_out(num_heads: int, head_dim: int) -> Transform:
    """[D, H*K] -> [H, K, D]."""
    return lambda x: x.reshape(-1, num_heads, head_dim).transpose(1, 2, 0)


def heads_bias(num_heads: int, head_dim: int) -> Transform:
    """[H*K] -> [H, K]."""
    return lambda x: x.reshape(num_heads, head_dim)


def rows(start: int, stop: int | None) -> Transform:
    """Takes the rows start to stop (excluded) of the first axis."""
    return lambda x: x[start:stop]


def chunk(index: int, count: int, axis: int = 0) -> Transform:
    """Takes one of `count` equal parts along an axis, such as the queries of [3*H*K, D]."""
    return lambda x: np.split(x, count, axis)[index]


def head_part(index: int, count: int, num_heads: int) -> Transform:
    """Takes one of `count` parts of each head's rows: [H*count*K, ...] -> [H*K, ...].

    This splits queries, keys and values that are fused head by head.
    """

    def take(x: np.ndarray) -> np.ndarray:
        parts = x.reshape(num_heads, count, -1, *x.shape[1:])[:, index]
        return parts.reshape(-1, *x.shape[1:])

    return take


def pad_rows(multiple: int) -> Transform:
    """Appends rows of zeros to a vocabulary table until their number is a multiple."""

    def pad(x: np.ndarray) -> np.ndarray:
        more = -len(x) % multiple
        return np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) if more else x

    return pad


def chain(*steps: Transform) -> Transform:
    """Applies transforms one after another."""

    def run(x: np.ndarray) -> np.ndarray:
        for step in steps:
            x = step(x)
        return x

    return run
