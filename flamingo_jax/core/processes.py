"""The processes of a run.

On a pod one per host, all of them running the same program, each on its part of the data.

    one machine         nothing to join; no network and no metadata server is asked for anything
    Cloud TPU slice     known by the chips of this machine; JAX asks the slice for the rest
    anywhere else       JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0..3 in the environment

The last is also a simulated pod: several processes on the CPU of one machine, with
JAX_PLATFORMS=cpu.

A process that fails must not leave the others waiting for it in a collective. It says why, with its
number in front, and is gone at once, without JAX's farewell, which would wait for the others. They
fail at their next collective on a CPU; on TPUs the heartbeat ends them: a process that the
coordinator (process 0) has not heard of for HEARTBEAT_SECONDS is taken for dead, and JAX then ends
all others.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import traceback
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from flamingo_jax.core import devices

MODES = ("auto", "on", "off")

# heartbeats have a thread of their own, so that a long compilation does not look like death
HEARTBEAT_SECONDS = 60
HINT_SECONDS = 30  # after JOIN_SECONDS, XLA ends the process with a report of its own
# hosts of a slice start within seconds of each other, but their disks may be cold
JOIN_SECONDS = 300

_ADDRESS, _COUNT, _INDEX = VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)


class ProcessError(RuntimeError):
    """This process could not join the others; the message says what to do."""


class Cluster:
    """The processes of this run, as a context.

    Joined at the beginning, left together at the end, and by all when one fails.

    with Cluster("auto", expected=(ConfigError,)) as cluster:
        work(report=cluster.report)

    Attributes:
        index: of this process.
        count: of all processes; 1 on one machine.
    """

    def __init__(
        self, mode: str = "auto", *, expected: tuple[type[BaseException], ...] = ()
    ) -> None:
        """Says how to join; nothing happens before the context is entered.

        Args:
            mode: "auto" = where the environment names other processes, or this machine has TPU
                chips; "on" = always, found by JAX if the environment does not say (Slurm, Open MPI,
                Kubernetes); "off" = never: this process alone. One of MODES.
            expected: errors that end the program with their message instead of a traceback.
        """
        self._mode, self._expected = mode, (*expected, ProcessError)
        self.index, self.count = 0, 1

    def report(self, line: str) -> None:
        """Writes a line to stdout, if this is the first process: one for the whole run."""
        if self.index == 0:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def __enter__(self) -> Cluster:
        """Joins the other processes; must come before anything that touches a device.

        Raises:
            SystemExit: with the message of a ProcessError, if they cannot be joined.
        """
        try:
            if _join(self._mode):
                self.index, self.count = jax.process_index(), jax.process_count()
        except ProcessError as error:
            sys.exit(_message(error))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves when all are done; after an error, at once and for all."""
        if error is None:
            if self.count > 1:  # the first may still be writing the report
                multihost_utils.sync_global_devices("flamingo_jax:end")
            return
        is_expected = isinstance(error, self._expected)
        if self.count > 1:
            text = (
                _message(error)
                if is_expected
                else "".join(traceback.format_exception(kind, error, trace))
            )
            if isinstance(error, jax.errors.JaxRuntimeError):
                text += "\nIf another process failed before this one, the reason is in its log."
            self._leave(text)
        if is_expected:
            sys.exit(_message(error))

    def _leave(self, text: str) -> None:
        """Ends this process with `text` on stderr, every line of it marked with the process's number."""
        sys.stdout.flush()
        sys.stderr.write(
            "".join(
                f"[process {self.index} of {self.count}] {line}\n" for line in text.splitlines()
            )
        )
        sys.stderr.flush()
        # sys.exit would stop in JAX's farewell until the others, who wait for this process, come to
        # it
        os._exit(1)


def from_first_process(text: str) -> str:
    """The text that the first process has, in all of them; they call it together."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    mine = data if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes().decode()


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _join(mode: str) -> bool:
    """Joins the other processes if there are any, or may be; returns whether it did.

    Raises:
        ProcessError: if they cannot be joined.
    """
    if mode == "off":
        return False
    address, count, index = _from_environment()
    if count == 1 or (count is None and mode == "auto" and not _on_tpu()):
        return False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # where the CPU is all there is
    where = (
        "as one of several processes"
        if count is None
        else f"as process {index} of {count} at {address}"
    )
    hint = threading.Timer(
        HINT_SECONDS, _say, [f"{where.removeprefix('as ')}: still waiting for the others to start"]
    )
    hint.daemon = True
    hint.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProcessError(
            f"Cannot start {where}: {reason} Start the same program on all hosts within "
            f"{JOIN_SECONDS} s, with {', '.join(VARIABLES)} set where JAX does not find them by "
            "itself; or run on this host alone with --distributed=off."
        ) from error
    finally:
        hint.cancel()
    return True


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _from_environment() -> tuple[str | None, int | None, int | None]:
    """Returns the address of the coordinator, the number of processes and the index of this one.

    None for all if the environment does not say.

    Raises:
        ProcessError: if it names only a part, or something that is no number.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    # JAX itself reads the address, where it finds the numbers by itself
    if set(given) <= {_ADDRESS}:
        return None, None, None
    if missing := [name for name in VARIABLES if name not in given]:
        raise ProcessError(
            f"The environment has {', '.join(given)}, but not {', '.join(missing)}: set all three "
            f"of {', '.join(VARIABLES)}, or none."
        )
    if not (
        given[_COUNT].isdecimal()
        and given[_INDEX].isdecimal()
        and int(given[_INDEX]) < int(given[_COUNT])
    ):
        raise ProcessError(
            f"The environment has {_INDEX}={given[_INDEX]} and {_COUNT}={given[_COUNT]}; expected "
            "a count, and an index from 0 to the count - 1."
        )
    return given[_ADDRESS], int(given[_COUNT]), int(given[_INDEX])


def _on_tpu() -> bool:
    """Whether this machine has TPU chips that JAX will use; looks at local files only."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "tpu" not in platforms.split(","):
        return False
    return importlib.util.find_spec("libtpu") is not None and devices.has_device(*devices.TPU)
