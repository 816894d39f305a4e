"""Ends a run as asked: SIGTERM (preemption, maintenance, `kill`) and SIGINT (Ctrl-C).

    a signal --thread of this module--> `handle` --> ... --> the loop saves and ends with status 75

Python runs a signal handler between two of its own instructions: not while the main thread
compiles, or waits for the devices. The interpreter writes the number of a signal to a pipe at once,
and a thread reads it there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HANDLERS: list[object] = []  # of SIGABRT: C calls them, and Python must not free them


class EndedAsAsked(Exception):
    """The run ends because it was asked to, and its state is saved. The message says both."""


class GivenUp(Exception):
    """A measurement is not finished, because the run was asked to end."""


@contextlib.contextmanager
def receiving(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Calls `handle` with each signal of SIGNALS inside the context, in a thread.

    A signal that is ignored (as by nohup) stays so. Only the main thread may enter the context.

    Args:
        handle: called in the thread; it does not return if the signal ends the process.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)

    def listen() -> None:
        while data := os.read(read, 1):
            if data[0] in SIGNALS:
                handle(signal.Signals(data[0]))

    # No action: the number alone is needed. jax.distributed has set its own handler of SIGTERM,
    # which would know nothing of a second signal.
    before = {
        number: signal.signal(number, lambda number, frame: None)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)  # ends the thread
        thread.join()
        os.close(read)


@contextlib.contextmanager
def before_abort(do: Callable[[], None]) -> Iterator[None]:
    """Calls `do` in a thread that aborts the process, such as one of XLA; then the process aborts.

    Python's own handlers are of no use there: they would run later, in the main thread.
    """
    undo = on_abort(do)
    try:
        yield
    finally:
        undo()


def on_abort(do: Callable[[], None]) -> Callable[[], None]:
    """Does the same up to the end of the process, or until the returned function is called."""
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: do())
    try:
        set_handler = ctypes.CDLL(None).signal
    except (OSError, AttributeError, TypeError):  # not Linux or macOS
        return lambda: None
    _HANDLERS.append(handler)
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = (ctypes.c_int, ctypes.c_void_p)
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    return lambda: set_handler(signal.SIGABRT, before)
