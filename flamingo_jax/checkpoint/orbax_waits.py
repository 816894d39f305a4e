"""How long a save waits: as long as it takes, but for nobody after it has failed here.

By itself orbax measures its limit by a clock that may be set, so a clock that jumps ends a save
that is well. And a process that failed to save waits for the others at a barrier, while they wait
for it. Here such a process raises its error at once. `core.guard` then ends the others; it also
ends a save that is stuck.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import orbax.checkpoint as ocp

_FOR_EVER_SECONDS = 10**6  # eleven days


def options(written: Callable[[], None]) -> ocp.AsyncOptions:
    """Returns the options of a save in the background.

    Args:
        written: is called in the first process when all is written, before the step gets its name.
    """
    return ocp.AsyncOptions(
        timeout_secs=_FOR_EVER_SECONDS,
        barrier_sync_fn=_wait_for_others,
        post_finalization_callback=written,
    )


def _wait_for_others(*, key: str, timeout_ms: int) -> None:
    """Returns when all processes have called it with `key`.

    Raises:
        BaseException: the error because of which a thread of the save ends, if it calls this then.
    """
    failed = sys.exception()
    if failed is not None and threading.current_thread() is not threading.main_thread():
        raise failed
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
