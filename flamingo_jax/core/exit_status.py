"""What the exit status of a training run says to the program that started it.

    0     done
    1     an error; its one line says what is wrong. The same command fails again
    75    ended as asked (SIGTERM, SIGINT, maintenance) after a save. The same command goes on
    76    a process was stuck, late, dead, or failed elsewhere. The same command goes on
    130   a second SIGINT: ended at once, nothing saved
    143   a second SIGTERM: ended at once, nothing saved

launch/tpu_pod.sh reads the same numbers. It starts a run again after 75 and 76.
"""

from __future__ import annotations

import signal

DONE = 0
ERROR = 1
ENDED_AS_ASKED = 75  # EX_TEMPFAIL of sysexits.h: try again later
STUCK = 76


def of_signal(number: int) -> int:
    """Returns the status that shells report of a program that a signal ended."""
    return 128 + signal.Signals(number)
