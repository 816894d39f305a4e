"""Writes arrays that do not fit in memory: each one part by part, as its parts are made.

    parts [d1 d2 ...], d0 of them --> one stored array [d0 d1 d2 ...], in chunks of about 64 MiB

The stored array has the format of every other array of a checkpoint, and the same functions read
it. orbax calls a handler for each type of leaf; `StreamedHandler` is the one for `Streamed`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

_CHUNK_BYTES = 64 * 2**20
PENDING_BYTES = 256 * 2**20
"""How much data may wait for the disk. Small parts are collected and stored together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """An array that is made while it is written.

    Attributes:
        shape: of the whole array.
        dtype: of the parts and of the whole array.
        parts: called once, when the array is written. Yields shape[0] arrays of shape[1:] if
            `is_stacked`, else the whole array as one part.
        is_stacked: True if the parts are slices along the first axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterator[np.ndarray]]
    is_stacked: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    def chunk(self) -> tuple[int, ...]:
        """Returns the shape of a chunk: as many rows of one part as fit into _CHUNK_BYTES."""
        outer = (1,) if self.is_stacked else ()
        inner = self.shape[len(outer) :]
        if not inner:
            return outer
        row = max(math.prod(inner[1:]) * self.dtype.itemsize, 1)
        return (*outer, min(inner[0], max(1, _CHUNK_BYTES // row)), *inner[1:])


_Leaf = tuple[Streamed, ocp.type_handlers.ParamInfo, ocp.SaveArgs]


class StreamedHandler(ocp.type_handlers.NumpyHandler):
    """Writes `Streamed` arrays for orbax: one after another, in a given order, part by part.

    Attributes:
        error: what was raised while the parts were made or written. It does not pass through orbax,
            which would print a traceback; whoever called orbax raises it.
    """

    error: Exception | None = None

    def __init__(self, order: Sequence[str]) -> None:
        """Takes the names of the arrays, in the order in which they are written."""
        super().__init__()
        self._order = {name: number for number, name in enumerate(order)}

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        """Starts to write the arrays, and returns a future. orbax passes them sorted by name."""
        args = args or [ocp.SaveArgs()] * len(values)
        leaves = sorted(
            zip(values, infos, args, strict=True),
            key=lambda leaf: self._order[leaf[1].keypath[0].key],
        )
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(leaves))]

    async def _write(self, leaves: Sequence[_Leaf]) -> None:
        try:
            await _write_all(leaves)
        except Exception as error:  # noqa: BLE001
            self.error = error


async def _write_all(leaves: Sequence[_Leaf]) -> None:
    if ocp.multihost.process_index() != 0:
        return  # the first process writes everything
    # All arrays are created before the first is written: their metadata are then stored together.
    stores = await asyncio.gather(*(_create(*leaf) for leaf in leaves))
    writer = _Writer()
    try:
        for (value, _, _), store in zip(leaves, stores, strict=True):
            for number, part in enumerate(value.parts()):
                await writer.write(value, part, store[number] if value.is_stacked else store)
        await writer.flush()
    except BaseException:
        await writer.settle()  # so that the directory can be removed
        raise


async def _create(
    value: Streamed, info: ocp.type_handlers.ParamInfo, arg: ocp.SaveArgs
) -> ts.TensorStore:
    """Creates the stored array as orbax does, but with the chunks of `value`."""
    await info.await_path_creation()
    spec = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=info.is_ocdbt_checkpoint,
        global_shape=value.shape,
        local_shape=value.shape,
        dtype=value.dtype,
        process_index=0,
        arg=arg,
    )
    spec["metadata"] = {**spec["metadata"], "chunks": value.chunk()}
    return await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)


class _Writer:
    """Writes blocks in the background, and waits when more than PENDING_BYTES are not stored."""

    def __init__(self) -> None:
        self._pending: list[ts.WriteFutures] = []
        self._pending_bytes = 0

    async def write(self, value: Streamed, part: np.ndarray, store: ts.TensorStore) -> None:
        for block in _blocks(value, part):
            copy = np.array(part[block], order="C")
            self._pending.append(
                store[block].write(copy, can_reference_source_data_indefinitely=True)
            )
            self._pending_bytes += copy.nbytes
            if self._pending_bytes > PENDING_BYTES:
                await self.flush()

    async def flush(self) -> None:
        """Waits until all blocks are stored.

        Raises what a write raised.
        """
        await asyncio.gather(*self._pending)
        self._pending, self._pending_bytes = [], 0

    async def settle(self) -> None:
        """Waits until no write is running, whether it succeeds or fails."""
        await asyncio.gather(*self._pending, return_exceptions=True)


def _blocks(value: Streamed, part: np.ndarray) -> list[Any]:
    """Returns the index of each chunk within a part; a scalar is one chunk."""
    if not part.ndim:
        return [...]
    rows = value.chunk()[int(value.is_stacked)]
    return [slice(start, min(start + rows, len(part))) for start in range(0, len(part), rows)]
