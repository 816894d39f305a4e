"""How a program ends: its exit status, and Ctrl-C while it still imports its modules.

Of a training run the status says to the program that started it:

    0     done
    1     an error; its one line says what is wrong. The same command fails again
    75    ended as asked (SIGTERM, SIGINT, maintenance) after a save. The same command goes on
    76    a process was stuck, late, dead, or failed elsewhere. The same command goes on
    130   a second SIGINT, or one before the run begins: ended at once, nothing saved
    143   a second SIGTERM: ended at once, nothing saved

launch/tpu_pod.sh reads the same numbers. It starts a run again after 75 and 76.

JAX and other libraries take seconds to import. Before that, the `__init__` of a package where
`python -m` looks for a program, or `console` for a command, calls `at_interrupt_end`. From
`command_line.ending_quietly` on, interrupts are exceptions again, and end the program with the same
line and status. After the end of the program libraries clean up; an interrupt ends that silently.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

DONE = 0
ERROR = 1
ENDED_AS_ASKED = 75  # EX_TEMPFAIL of sysexits.h: try again later
STUCK = 76
INTERRUPTED = "Interrupted.\n"


def of_signal(number: int) -> int:
    """Returns the status that shells report of a program that a signal ended."""
    return 128 + signal.Signals(number)


def at_interrupt_end() -> None:
    """Lets SIGINT end this process at once, unless it ignores the signal (nohup)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def at_interrupt_raise() -> None:
    """Lets SIGINT raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def at_interrupt_end_silently() -> None:
    """Lets SIGINT end this process without a line, unless it ignores the signal (nohup)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # stderr is closed
        os.write(2, INTERRUPTED.encode())
    os._exit(of_signal(number))
