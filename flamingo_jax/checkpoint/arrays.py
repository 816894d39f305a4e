"""Stores named arrays in an orbax directory: the format of all weights and optimizer states.

A tree is stored flat, {"trainable/flamingo/xattn/query/w": array, ...}. The names contain the whole
structure, so a directory can be listed without reading data, compared by name, and read in part.
Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flamingo_jax.checkpoint import orbax_logs
from flamingo_jax.checkpoint.streamed import Streamed, StreamedHandler
from flamingo_jax.core import paths, trees
from flamingo_jax.core.paths import PathLike

orbax_logs.drop_tracebacks()

# Changes some whole modules of a model, {module: {name: array}}, right after they are read.
Change = Callable[[trees.Params], trees.Params]

CHUNK_BYTES = 2**30
"""Weights that are changed are read in chunks of about this size."""

# What orbax and TensorStore raise for damaged files; orbax raises Exception itself too.
ORBAX_ERRORS = Exception


class CheckpointError(RuntimeError):
    """A checkpoint is missing, incomplete, damaged or not the right one.

    The message says what to do.
    """


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by name: keys, fields and indices joined by "/".

    Raises:
        CheckpointError: if two leaves share a name, or a leaf has zero size, as orbax forbids.
    """
    names: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in names:
            raise CheckpointError(
                f"Two arrays of the tree are named {name!r}. Name its keys so that paths differ."
            )
        if 0 in np.shape(leaf):
            raise CheckpointError(
                f"Array {name!r} has zero size {np.shape(leaf)}, and cannot be "
                "stored. Leave it out."
            )
        names[name] = leaf
    return names


def write(directory: PathLike, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays and replaces the directory; all processes of a cluster call it together.

    If the arrays are `Streamed` (all of them), their parts are made and written one after another,
    in the order of `arrays`.

    Raises:
        CheckpointError: if they cannot be written.
    """
    target = paths.absolute(directory)
    if not paths.is_plain(target.name):
        raise CheckpointError(
            rf"Cannot write arrays to {target}: its name has one of [ ] * ? \\. Give another name."
        )
    options, streamed = {}, StreamedHandler(list(arrays))
    if any(isinstance(array, Streamed) for array in arrays.values()):
        # orbax warns if there is no handler of jax.Array, although there is no such array.
        handlers = (
            (Streamed, streamed),
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        )
        options["type_handler_registry"] = ocp.type_handlers.create_type_handler_registry(*handlers)
    try:
        with (
            paths.plain_name(paths.make_directory(target.parent)) as parent,
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer,
        ):
            checkpointer.save(
                parent / target.name, args=ocp.args.PyTreeSave(dict(arrays)), force=True
            )
        problem = streamed.error
    except ORBAX_ERRORS as error:
        problem = streamed.error or error  # orbax complains about weights that are missing then
    if isinstance(problem, CheckpointError):  # raised while a part was made
        raise problem
    if problem is not None:
        raise CheckpointError(f"Cannot write arrays to {directory}: {cause(problem)}") from problem


def describe(directory: PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> shape and dtype of the stored arrays; reads no data.

    Raises:
        CheckpointError: if there are no arrays, or they are damaged.
    """
    path = paths.absolute(directory)
    if not path.is_dir():
        raise CheckpointError(f"There are no arrays at {path}. Check the path.")
    with _reading(path) as plain:
        tree = ocp.PyTreeCheckpointHandler().metadata(plain).tree
        found = {str(name): jax.ShapeDtypeStruct(m.shape, m.dtype) for name, m in tree.items()}
    if not found:
        raise CheckpointError(
            f"The arrays at {path} are damaged or incomplete: the list of names is empty."
        )
    return found


def read(directory: PathLike, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads only the arrays that `like` names, with its shardings and dtypes.

    Args:
        directory: written by `write` or by a `Store`.
        like: name -> shape, dtype and sharding (None: the default device). Names and shapes must be
            those of the stored arrays.

    Raises:
        CheckpointError: if the data are damaged.
    """
    if not like:
        return {}
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    args = {
        name: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding or default, dtype=leaf.dtype, global_shape=leaf.shape
        )
        for name, leaf in like.items()
    }
    wanted = ocp.args.PyTreeRestore(item=dict(like), restore_args=args, partial_restore=True)
    with (
        _reading(directory) as plain,
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
    ):
        return dict(checkpointer.restore(plain, args=wanted))


def chunks(
    flat: Mapping[str, Any], num_bytes: int = CHUNK_BYTES
) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
    """Splits weights by path into chunks of whole modules, of about `num_bytes` each."""
    chunk: dict[str, Any] = {}
    for module, weights in trees.unflatten(flat).items():
        own = {f"{module}/{name}".lstrip("/"): leaf for name, leaf in weights.items()}
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in (*chunk.values(), *own.values()))
        if chunk and size > num_bytes:
            yield chunk
            chunk = {}
        chunk |= own
    if chunk:
        yield chunk


def compare(found: Mapping[str, Any], wanted: Mapping[str, Any], *, where: str) -> None:
    """Checks that two sets of arrays have the same names and shapes.

    Args:
        found: name -> shape of the stored arrays.
        wanted: name -> shape of the arrays that the program needs.
        where: name of the checkpoint in the message.

    Raises:
        CheckpointError: if they differ; names the first few differences.
    """
    only_found = sorted(found.keys() - wanted.keys())
    only_wanted = sorted(wanted.keys() - found.keys())
    if only_found or only_wanted:
        raise CheckpointError(
            f"{where} holds other arrays than the model. Only in the checkpoint "
            f"({len(only_found)}): {few(only_found)}. Only in the model ({len(only_wanted)}): "
            f"{few(only_wanted)}. Use the config that it was made with."
        )
    wrong = [
        name for name in sorted(found) if tuple(found[name].shape) != tuple(wanted[name].shape)
    ]
    if wrong:
        shapes = [
            f"{name}: got {found[name].shape}, expected {wanted[name].shape}" for name in wrong
        ]
        raise CheckpointError(
            f"{where} holds {len(wrong)} arrays of other shapes than the model: "
            f"{few(shapes, separator='; ')}. Use the config that it was made with."
        )


def few(items: list[str], *, separator: str = ", ") -> str:
    """Returns the first three items as text."""
    if not items:
        return "none"
    return separator.join(items[:3]) + (f"{separator}..." if len(items) > 3 else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, since TensorStore's texts are pages long."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:300]}"


def cause(error: BaseException) -> str:
    """Returns in one line what happened first; orbax puts errors of its own around it.

    The reason of TensorStore is at the end of a long line, after all that it stopped.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec=")[0]
    if of_system := re.search(r"\[os_error_code='(\d+)'\]", line):
        files = re.findall('"(/[^"]+)"', line)
        return ": ".join([os.strerror(int(of_system[1])), *files[-1:]])
    if len(line) > 300:
        line = f"{line[:140]} ... {line[-150:]}"
    return f"{type(error).__name__}: {line}"


def read_here(directory: PathLike, name: str) -> np.ndarray:
    """Reads one array in this process alone, independently of the other processes of a cluster.

    Raises:
        CheckpointError: if the data are damaged.
    """
    here = ocp.multihost.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process_{here}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    args = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
    wanted = ocp.args.PyTreeRestore(item={name: 0}, restore_args=args, partial_restore=True)
    with (
        _reading(directory) as plain,
        ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
    ):
        return checkpointer.restore(plain, args=wanted)[name]


@contextlib.contextmanager
def _reading(directory: PathLike) -> Iterator[paths.Path]:
    """Gives the name that orbax reads a directory by, and reports what orbax raises.

    Raises:
        CheckpointError: if it raises anything.
    """
    try:
        with paths.plain_name(directory) as plain:
            yield plain
    except ORBAX_ERRORS as error:
        raise CheckpointError(
            f"The arrays at {directory} are damaged or incomplete: {cause(error)}"
        ) from error
