"""The body of a request: as it comes, up to a number of bytes, as long as its client sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from flamingo_jax.serving import answer_batches
from flamingo_jax.serving.api_error import ApiError

SILENT, SILENT_WHEN_STOPPING = 60.0, 1.0  # seconds without a byte of a body that is not complete
_LOOK_SECONDS = 0.25
_DRAINED = 4  # times the most bytes; then the connection is closed


async def read(
    stream: AsyncGenerator[bytes, None], most: int, is_stopping: Callable[[], bool]
) -> bytes:
    """Returns the body.

    Args:
        stream: its parts.
        most: bytes.
        is_stopping: whether the server ends; it does not wait for a client that is silent then.

    Raises:
        ApiError: it is too large (413), or its client is silent (408; 503 in a server that ends).
    """
    too_large = ApiError(
        f"The body has more than {most:,} bytes. Send smaller images.",
        status=413,
        code="body_too_large",
    )
    parts, size = [], 0
    while (part := await _next(stream, is_stopping)) is not None:
        size += len(part)
        if size > _DRAINED * most:
            raise too_large
        # What is too much is read and dropped: a client that still writes would not see the answer.
        if size <= most:
            parts.append(part)
    if size > most:
        raise too_large
    return b"".join(parts)


async def _next(
    stream: AsyncGenerator[bytes, None], is_stopping: Callable[[], bool]
) -> bytes | None:
    """Returns the next part; None at the end."""
    part = asyncio.ensure_future(anext(stream, None))
    since = time.monotonic()
    try:
        while not (await asyncio.wait({part}, timeout=_LOOK_SECONDS))[0]:
            silent = time.monotonic() - since
            if is_stopping() and silent > SILENT_WHEN_STOPPING:
                raise answer_batches.stopping()
            if silent > SILENT:
                raise ApiError(
                    f"The rest of the body has not come for {SILENT:g} seconds. Send the request "
                    "again.",
                    status=408,
                    code="request_timeout",
                )
        return part.result()
    finally:
        part.cancel()
