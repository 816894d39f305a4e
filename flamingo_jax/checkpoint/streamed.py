"""Arrays larger than memory on their way to disk: written part by part, as somebody makes them.

    parts [d1 d2 ...], one for each d0 --> one stored array [d0 d1 d2 ...], in chunks of some 64 MiB

What is stored is like any other array of a checkpoint, and is read by the same functions.
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
"""What may wait for the disk: many small parts are then stored in one go."""


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed:
    """An array that is not there yet.

    Attributes:
        shape: of the whole.
        dtype: of the parts, and of the whole.
        parts: called once, when its turn to be written has come; yields shape[0] arrays of
            shape[1:], or (not `is_stacked`) the whole as one.
        is_stacked: which of the two.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterator[np.ndarray]]
    is_stacked: bool = False

    @property
    def size(self) -> int:
        """Numbers in the whole."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self.size * self.dtype.itemsize

    def chunk(self) -> tuple[int, ...]:
        """Returns the shape of what is stored together.

        Of one part, as many rows as fit into _CHUNK_BYTES.
        """
        outer = (1,) if self.is_stacked else ()
        inner = self.shape[len(outer) :]
        if not inner:
            return outer
        row = max(math.prod(inner[1:]) * self.dtype.itemsize, 1)
        return (*outer, min(inner[0], max(1, _CHUNK_BYTES // row)), *inner[1:])


class StreamedHandler(ocp.type_handlers.NumpyHandler):
    """Writes `Streamed` for orbax one after the other, in the order in which they are given, a part at a time."""

    def __init__(self, order: Sequence[str]) -> None:
        """Takes the names of the arrays in the order in which they are to be written."""
        super().__init__(deepcopy_host_arrays=False)
        self._order = {name: number for number, name in enumerate(order)}
        self._left = self._unopened = len(order)
        self._turn = self._open = asyncio.Event()  # the first one's turn is when all are open
        self._pending: list[ts.WriteFutures] = []
        self._pending_bytes = 0

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        """Sorts what orbax sorted by name."""
        args = args or [ocp.SaveArgs()] * len(values)
        order = sorted(range(len(values)), key=lambda i: self._order[infos[i].keypath[0].key])
        return await super().serialize(
            *([each[i] for i in order] for each in (values, infos, args))
        )

    async def _open_and_write(
        self, value: Streamed, tspec: dict[str, Any], ts_context: ts.Context
    ) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        next_turn = self._turn
        tspec = {**tspec, "metadata": {**tspec["metadata"], "chunks": value.chunk()}}
        store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        self._unopened -= 1
        if not self._unopened:
            self._open.set()
        await turn.wait()
        try:
            await self._write(value, store)
        except BaseException:
            # so that the directory can be removed
            await asyncio.gather(*self._pending, return_exceptions=True)
            raise
        next_turn.set()

    async def _write(self, value: Streamed, store: ts.TensorStore) -> None:
        for number, part in enumerate(value.parts()):
            place = store[number] if value.is_stacked else store
            for block in _blocks(value, part):
                copy = np.array(part[block], order="C")
                self._pending.append(
                    place[block].write(copy, can_reference_source_data_indefinitely=True)
                )
                self._pending_bytes += copy.nbytes
                if self._pending_bytes > PENDING_BYTES:
                    await self._flush()
        self._left -= 1
        if not self._left:
            await self._flush()

    async def _flush(self) -> None:
        await asyncio.gather(*self._pending)
        self._pending, self._pending_bytes = [], 0


def _blocks(value: Streamed, part: np.ndarray) -> list[Any]:
    """Returns the rows of a part that are stored together; a scalar is one block."""
    if not part.ndim:
        return [...]
    rows = value.chunk()[int(value.is_stacked)]
    return [slice(start, min(start + rows, len(part))) for start in range(0, len(part), rows)]
