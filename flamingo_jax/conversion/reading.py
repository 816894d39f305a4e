"""Reads weights from publishers' files: first names and shapes only, then one weight at a time.

    *.safetensors         one file, or the shards of model.safetensors.index.json
    *.pt, *.bin, *.pth    PyTorch's zip files, or the shards of pytorch_model.bin.index.json. Only
                          tensors are unpickled, never code. The weights may be inside of
                          {"model_state_dict": ...}, and have names "module.x".

A directory must contain one model. Of several files the one with the canonical name is read, in the
order of transformers: model.safetensors, its shards, pytorch_model.bin, its shards.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.checkpoint.arrays import few, first_line
from flamingo_jax.conversion.files import git_lfs
from flamingo_jax.conversion.files.model_files import (
    TORCH,
    ConversionError,
    files_of_model,
    weights_among,
)
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike

_NESTED = ("model_state_dict", "state_dict", "model")
_SAFETENSORS_DTYPES = {
    "BF16": jnp.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BOOL": np.bool_,
    **{
        f"{letter}{bits}": np.dtype(f"{name}{bits}")
        for letter, name in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    },
}


@runtime_checkable
class Weights(Protocol):
    """Named arrays that are read one at a time."""

    def names(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns name -> shape and dtype; reads no data."""

    def read(self, name: str) -> np.ndarray:
        """Returns one array as it is stored."""


class InMemory:
    """Arrays that are in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}

    def names(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype)
            for name, array in self._arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


class Merged:
    """Several sets of weights as one, each with a prefix: ("vision.", weights), ("lm.", weights).

    Raises:
        ConversionError: if two of them have a name in common.
    """

    def __init__(self, *parts: tuple[str, Weights]) -> None:
        self._where: dict[str, tuple[Weights, str]] = {}
        self._names: dict[str, jax.ShapeDtypeStruct] = {}
        for prefix, part in parts:
            for name, leaf in part.names().items():
                if prefix + name in self._where:
                    raise ConversionError(
                        f"Two files hold a weight {prefix + name!r}; give each of them once."
                    )
                self._where[prefix + name], self._names[prefix + name] = (part, name), leaf

    def names(self) -> dict[str, jax.ShapeDtypeStruct]:
        return dict(self._names)

    def read(self, name: str) -> np.ndarray:
        part, name_in_part = self._where[name]
        return part.read(name_in_part)


class Safetensors:
    """One safetensors file.

    Raises:
        ConversionError: if it is of another kind or cut off.
    """

    def __init__(self, path: PathLike) -> None:
        self._path = local(path)
        with (
            _reporting(self._path),
            package("safetensors").safe_open(str(self._path), framework="numpy") as file,
        ):
            keys = file.keys()  # the file is no dict
            pieces = {name: file.get_slice(name) for name in keys}
            self._names = {name: self._describe(name, piece) for name, piece in pieces.items()}

    def _describe(self, name: str, piece: Any) -> jax.ShapeDtypeStruct:
        if (dtype := _SAFETENSORS_DTYPES.get(piece.get_dtype())) is None:
            raise ConversionError(
                f"Weight {name!r} of {self._path} is {piece.get_dtype()}; expected one of "
                f"{', '.join(_SAFETENSORS_DTYPES)}."
            )
        return jax.ShapeDtypeStruct(tuple(piece.get_shape()), dtype)

    def names(self) -> dict[str, jax.ShapeDtypeStruct]:
        return dict(self._names)

    def read(self, name: str) -> np.ndarray:
        with (
            _reporting(self._path),
            package("safetensors").safe_open(str(self._path), framework="numpy") as file,
        ):
            return file.get_tensor(name)


class Torch:
    """One file that torch.save wrote. Only tensors are unpickled.

    Raises:
        ConversionError: if it is of another kind, is cut off, or is no dictionary of tensors.
    """

    def __init__(self, path: PathLike) -> None:
        torch = package("torch")
        self._path = local(path)
        with _reporting(self._path):
            with paths.regular(self._path).open("rb") as file:
                # In a zip file the tensors stay on disk until they are read. A file in the format
                # before 2020 is read completely.
                is_zip = file.read(2) == b"PK"
            content = torch.load(
                str(self._path), map_location="cpu", weights_only=True, mmap=is_zip
            )
        self._tensors = _state_dict(content, self._path)

    def names(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(tuple(t.shape), _torch_dtype(t))
            for name, t in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        torch, tensor = package("torch"), self._tensors[name].detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(_torch_dtype(tensor))
        return tensor.numpy()


def open_weights(path: PathLike, *, first: Sequence[str] = ()) -> Weights:
    """Opens a file of weights, an index of shards, or the directory of one model.

    Args:
        path: the file or the directory.
        first: names of files that a publisher prefers to the canonical ones.

    Raises:
        ConversionError: if there are no weights, a shard is missing, or a file is damaged.
    """
    place = local(path)
    if not place.exists():
        raise ConversionError(f"There is nothing at {place}. Check --input.")
    if place.is_dir():
        found = _model_files(place, first)
        if len(found) > 1:
            return Merged(*(("", open_weights(file)) for file in found))
        place = found[0]
    if place.name.endswith(".index.json"):
        return _shards(place)
    if place.suffix == ".safetensors":
        return Safetensors(place)
    if place.suffix in TORCH:
        return Torch(place)
    raise ConversionError(
        f"{place} is no file of weights; expected *.safetensors or *{', *'.join(TORCH)}."
    )


def read_config(directory: PathLike) -> dict[str, Any]:
    """Returns the content of config.json in the directory of the weights.

    Raises:
        ConversionError: if there is no such file, or it is damaged.
    """
    place = Path(directory)
    file = (place if place.is_dir() else place.parent) / "config.json"
    try:
        return read_object(file)
    except ConversionError as error:
        raise ConversionError(f"{error} The model's shape is read from it.") from error


def read_object(file: Path) -> dict[str, Any]:
    """Returns the content of a JSON file of a publisher, which must be an object.

    Raises:
        ConversionError: if there is no such file, it is damaged, or it holds something else.
    """
    try:
        content = paths.read_json(file)
    except paths.PathError as error:
        problem = git_lfs.problem(file) or f"{error} Put the publisher's there."
        raise ConversionError(problem) from error
    if not isinstance(content, dict):
        raise ConversionError(
            f"{file} holds a {type(content).__name__}; expected an object. Put the publisher's "
            "there."
        )
    return content


def passed_over(path: PathLike, *, first: Sequence[str] = ()) -> list[str]:
    """Returns the names of the files of weights in a directory that `open_weights` does not read.

    The directory is `path`, or the one that contains it; `first` is as there.

    Raises:
        ConversionError: as `open_weights`.
    """
    place = local(path)
    directory = place if place.is_dir() else place.parent
    read = list(_model_files(place, first)) if place.is_dir() else [place]
    if read[0].name.endswith(".index.json"):
        read = [directory / name for name in files_of_index(read[0])]
    return sorted(set(_files_of_weights(directory)) - {file.name for file in read})


def _files_of_weights(directory: Path) -> list[str]:
    return weights_among([file.name for file in directory.iterdir()])


def _model_files(directory: Path, first: Sequence[str]) -> tuple[Path, ...]:
    names = [file.name for file in directory.iterdir()]
    return tuple(directory / name for name in files_of_model(names, first, where=str(directory)))


def files_of_index(index: Path) -> list[str]:
    """Returns the names of the shards of an index.

    Raises:
        ConversionError: it is no index.
    """
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Returns {name of a weight: file} of an index of shards."""
    try:
        where = read_object(index).get("weight_map")
    except ConversionError as error:
        raise ConversionError(f"{index} is no index of shards: {error}") from error
    if not isinstance(where, dict) or not where:
        raise ConversionError(
            f"{index} is no index of shards: it has no weight_map. Put the publisher's there."
        )
    if wrong := [name for name in where.values() if not isinstance(name, str)]:
        raise ConversionError(
            f"{index} is no index of shards: {wrong[0]!r} is no name of a file. Put the "
            "publisher's there."
        )
    return where


def _shards(index: Path) -> Weights:
    """Opens all files that an index names, and checks that they contain its weights."""
    where = _weight_map(index)
    files = sorted(set(where.values()))
    if missing := [name for name in files if not (index.parent / name).exists()]:
        raise ConversionError(
            f"{len(missing)} of {len(files)} shards that {index} names are missing: "
            f"{few(missing)}. Put them next to it."
        )
    merged = Merged(*(("", open_weights(index.parent / name)) for name in files))
    lost = sorted(where.keys() - merged.names().keys())
    more = sorted(merged.names().keys() - where.keys())
    if lost or more:
        raise ConversionError(
            f"The shards of {index} hold other weights than it says. Only in the index "
            f"({len(lost)}): {few(lost)}. Only in the shards ({len(more)}): {few(more)}. Take all "
            "files from one release."
        )
    return merged


def _state_dict(content: Any, path: Path) -> dict[str, Any]:
    """Returns the tensors by name, from a state dict or a dictionary that contains one."""
    torch = package("torch")
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(
            f"{path} holds a {type(content).__name__}; expected a dictionary of tensors."
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ConversionError(
            f"{path} holds {len(others)} things that are no tensors: {few(others)}; expected a "
            f"dictionary of tensors, bare or under one of {', '.join(_NESTED)}."
        )
    # names of DistributedDataParallel
    is_wrapped = all(name.startswith("module.") for name in content)
    return {
        name.removeprefix("module.") if is_wrapped else name: tensor
        for name, tensor in content.items()
    }


def _torch_dtype(tensor: Any) -> np.dtype:
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        return np.dtype(jnp.bfloat16) if name == "bfloat16" else np.dtype(name)
    except TypeError as error:
        raise ConversionError(
            f"A tensor of the file is {name}; expected float32, float16 or bfloat16."
        ) from error


def package(name: str) -> Any:
    """Imports an optional package and returns it.

    Raises:
        ConversionError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConversionError(
            f"Converting needs the package {name!r}: pip install 'flamingo_jax[conversion]'. "
            f"({error})"
        ) from error


def local(path: PathLike) -> Path:
    """Returns a local path, because the readers of other packages take no other.

    Raises:
        ConversionError: if it is on an object store.
        PathError: if it is a pipe or a device.
    """
    if not paths.is_local(path):
        raise ConversionError(
            f"{path} is not on a file system: copy it to a local disk first; --output may be on "
            "gs://."
        )
    return Path(path) if Path(path).is_dir() else paths.regular(path)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Converts errors of other packages' readers to a ConversionError."""
    try:
        yield
    except (ConversionError, MemoryError):
        raise
    except Exception as error:
        if pointer := git_lfs.problem(path):
            raise ConversionError(pointer) from error
        if isinstance(error, pickle.UnpicklingError):
            raise ConversionError(
                f"{path} holds more than tensors, and is not read, since unpickling it would run "
                f"its code: {first_line(error)} Save its state_dict() alone."
            ) from error
        raise ConversionError(
            f"{path} is damaged, cut off or of another kind: {first_line(error)}. Download it "
            "again."
        ) from error
