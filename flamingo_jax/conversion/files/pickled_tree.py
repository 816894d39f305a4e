"""Reads a pickled tree of arrays, such as DeepMind's NFNets, without running code in the file.

A pickle is a program: loading one can call any function of any installed package. This reader
allows only the names that rebuild arrays of numpy and JAX. Every other name is refused before it is
imported. The whole tree is read into memory.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from flamingo_jax.checkpoint.arrays import first_line
from flamingo_jax.conversion.reading import ConversionError, local
from flamingo_jax.core.paths import PathLike, regular


def read_tree(path: PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Returns {module: {name: array}} of a file that pickle or dill wrote.

    Allowed are dicts (also OrderedDict and Haiku's FlatMapping and FlatMap), lists, tuples, numpy's
    arrays, scalars and dtypes, and JAX's arrays. The tree may be inside of {"params": tree,
    "state": ...}.

    Raises:
        ConversionError: if the file names anything else, is cut off, or contains no tree of arrays.
    """
    file = local(path)
    try:
        content = _Reader(io.BytesIO(regular(file).read_bytes())).load()
    except ConversionError as error:
        raise ConversionError(f"{file} is not read: {error}") from error
    except FileNotFoundError as error:
        raise ConversionError(f"There is nothing at {file}. Check --input.") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise ConversionError(
            f"{file} is damaged or cut off: {first_line(error)}. Download it again."
        ) from error
    content = _plain(content)
    if isinstance(content, dict) and isinstance(content.get("params"), dict):
        content = content["params"]
    if not _is_filled_dict(content) or not all(map(_is_module, content.values())):
        raise ConversionError(
            f"{file} holds no tree of arrays, {{module: {{name: array}}}}. Check --source and "
            "--input."
        )
    return content


class _Reader(pickle.Unpickler):
    """Allows only the names in `_KNOWN`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise ConversionError(
                f"it calls upon {module}.{name}, which no array needs and which could do anything. "
                "Take the publisher's file of weights."
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise ConversionError(
            f"it refers to something outside of it, {str(pid)[:80]!r}. Take the whole file."
        )


class _Dtype:
    """A dtype, from its code ("f4") and its state, of which only the byte order is used."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or code not in _CODES:
            raise ConversionError(
                f"it holds arrays of {str(code)[:80]!r}; expected numbers, one of "
                f"{', '.join(_CODES)}."
            )
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array, from its state. numpy's own `__setstate__` is not used for untrusted data."""

    def __init__(self, *_: Any) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = np.frombuffer(data, dtype.dtype).reshape(
            shape, order="F" if is_fortran else "C"
        )


def _from_jax(make: Any, args: Any, state: Any, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__(state)
    return array


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    return array


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
    return _from_buffer(data, dtype, (), "C")


def _latin1(text: str, encoding: str) -> bytes:
    """Decodes the bytes in pickles of old protocols."""
    return text.encode("latin1")


def _mapping(content: Any) -> dict[Any, Any]:
    return dict(content)


def _dtype_class(_: None) -> type[_Dtype]:
    """Stands for the class numpy.dtype in files of dill."""
    return _Dtype


_CODES = ("f2", "f4", "f8", "i4", "i8", "u4")
_REBUILD = {"_reconstruct": _Array, "scalar": _scalar, "_frombuffer": _from_buffer}
_KNOWN: Mapping[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.multiarray", name): own
        for core in ("core", "_core")
        for name, own in _REBUILD.items()
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("jax._src.array", "_reconstruct_array"): _from_jax,
    ("jax._src.device_array", "reconstruct_device_array"): _from_jax,
    ("haiku._src.data_structures", "FlatMapping"): _mapping,
    ("haiku._src.data_structures", "FlatMap"): _mapping,
    ("dill._dill", "_create_dtypemeta"): _dtype_class,
}


def _plain(content: Any) -> Any:
    """Replaces the objects of this file by dicts and arrays."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    return content.array if isinstance(content, _Array) else content


def _is_filled_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _is_module(value: Any) -> bool:
    return _is_filled_dict(value) and all(isinstance(a, np.ndarray) for a in value.values())
