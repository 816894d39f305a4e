"""Joins and leaves the processes of a run: `Cluster`.

On a pod each host has one process. All run the same program, each on its part of the data.

    one machine        There is nothing to join. No network or metadata server is used.
    Cloud TPU slice    Recognised by the chips of this machine. JAX asks the slice for the rest.
    other clusters     The environment has JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES=4
                       and JAX_PROCESS_ID=0..3.

Several processes on the CPU of one machine, with JAX_PLATFORMS=cpu, simulate a pod.

A process that fails, that is lost or stuck, or that is asked to end, ends the others within seconds
(`core.guard`). After an error it leaves at once, without JAX's shutdown, which would wait for the
others. XLA's own heartbeat comes later, and is for a process without Python. When all are done, one
that is lost is no error: the others end with status 0.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import threading
import traceback
from types import TracebackType

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from flamingo_jax.core import command_line, devices, exit_status, preemption
from flamingo_jax.core.guard import Guard
from flamingo_jax.core.peers import FAILED, TOGETHER, Peers
from flamingo_jax.core.phases import Phase
from flamingo_jax.core.preemption import EndedAsAsked

MODES = ("auto", "on", "off")

# Of XLA, which ends a process with a page of text; `core.guard` is faster, with one line.
HEARTBEAT_SECONDS = 600
HINT_SECONDS = 30  # when this process says that it still waits for the others
# The hosts of a slice start within seconds of each other, but may read the program from cold disks.
JOIN_SECONDS = 300
LEAVE_SECONDS = 60  # that a process which is done waits for one that died at its very end

_ADDRESS, _COUNT, _INDEX = VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)

_START_ALL = (
    f"Start the same program on all hosts within {JOIN_SECONDS} s, with {', '.join(VARIABLES)} set "
    "where JAX does not find them by itself; or run on this host alone with --distributed=off."
)


class ProcessError(RuntimeError):
    """This process cannot join the others. The message says what to do."""


class Cluster:
    """The processes of this run, as a context.

        with Cluster("auto", expected=(ConfigError,)) as cluster:
            work(report=cluster.report)

    The processes join at the beginning and leave together at the end. If one fails, all end.

    Attributes:
        index: number of this process.
        count: number of processes; 1 on one machine.
        guard: ends this process if it is stuck, lost or asked to end.
    """

    def __init__(
        self,
        mode: str = "auto",
        *,
        expected: tuple[type[BaseException], ...] = (),
        saves: bool = False,
    ) -> None:
        """Stores the options; the processes join when the context is entered.

        Args:
            mode: one of MODES. "auto" joins if the environment names other processes, or this
                machine has TPU chips. "on" joins always: JAX finds the others if the environment
                does not name them (Slurm, Open MPI, Kubernetes). "off" never joins.
            expected: errors that end the program with their message instead of a traceback.
            saves: True if the program asks `guard.should_end`, and saves its state when it is asked
                to end. If not, SIGTERM and SIGINT end it at once, with all other processes.
        """
        # ImportError: a package of an extra, such as that of gs://, is missing
        self._mode, self._expected = mode, (*expected, ProcessError, ImportError)
        self._saves = saves
        self.index, self.count = 0, 1
        self.guard = Guard(None, saves=saves)
        self._has_unwritten = False  # lines of `report`
        self._all_done = False

    def report(self, line: str) -> None:
        """Writes a line to stdout in the first process only, so a run writes it once.

        A line that cannot be written stops nothing. If the disk of stdout is full it is written
        with a later line, when there is room again.
        """
        if self.index > 0:
            return
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
            self._has_unwritten = False
        except OSError:
            self._has_unwritten = True

    def __enter__(self) -> Cluster:
        """Joins the other processes, before any code uses a device.

        Raises:
            SystemExit: with the message of a ProcessError, if this fails.
        """
        try:
            if _join(self._mode):
                self.index, self.count = jax.process_index(), jax.process_count()
        except ProcessError as error:
            sys.exit(_message(error))
        others = Peers(self.index, self.count) if self.count > 1 else None
        if others:  # before the guard, which puts its own handler in front of this one
            preemption.on_abort(self._on_abort)
        self.guard = Guard(others, saves=self._saves)
        self.guard.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until all processes are done; after an error, ends this process at once."""
        if error is None:
            if self.count > 1:  # the first process may still write the report
                self.guard.at(Phase.ENDING)
                multihost_utils.sync_global_devices("flamingo_jax:end")
                with contextlib.suppress(OSError, AttributeError):  # a full disk; it is closed
                    sys.stdout.flush()
                self._all_done = True
            self.guard.__exit__()
            if self._has_unwritten:
                command_line.drop_output()
            return
        if self.count > 1:
            self._leave(error)
        self.guard.__exit__()
        if isinstance(error, EndedAsAsked):
            sys.stderr.write(f"{error}\n")
            sys.exit(exit_status.ENDED_AS_ASKED)
        if isinstance(error, self._expected) or _is_out_of_memory(error):
            sys.exit(_message(error))

    def _on_abort(self) -> None:
        """Ends this process as done if XLA aborts it because another one died after the end."""
        if self._all_done:
            os._exit(exit_status.DONE)

    def _leave(self, error: BaseException) -> None:
        """Ends this process, with its number in front of each line."""
        if isinstance(error, EndedAsAsked):
            text = str(error) if self.index == 0 else ""
            self.guard.leave(exit_status.ENDED_AS_ASKED, text, how=TOGETHER, why=str(error))
        status, why = exit_status.ERROR, _message(error).splitlines()[0]
        if isinstance(error, self._expected) or _is_out_of_memory(error):
            text = _message(error)
        elif isinstance(error, SystemExit):
            if not error.code:
                return
            status = error.code if isinstance(error.code, int) else exit_status.ERROR
            text = why = f"ended with {error.code}" if isinstance(error.code, int) else error.code
        else:
            text = "".join(traceback.format_exception(error))
        # What comes from a library may come from a process that failed: the collectives of CPUs
        # raise ValueError, orbax gives up waiting.
        is_own = isinstance(error, (*self._expected, SystemExit)) and error.__cause__ is None
        if not is_own and (lost := self.guard.wait_for_a_reason()):
            status = exit_status.STUCK
            text = (
                f"ends because {lost} gives no sign of life: it is killed or stopped, or its "
                f"machine is gone. The same command goes on from the newest checkpoint. ({why})"
            )
        self.guard.leave(status, text, how=FAILED, why=why)


def from_first_process(text: str) -> str:
    """Returns the first process's `text` in all processes; all of them call it together."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    mine = data if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes().decode()


def _message(error: BaseException) -> str:
    if _is_out_of_memory(error):
        logging.debug("%s", "".join(traceback.format_exception(error)))
        what = str(error).partition("\n")[0].removesuffix(".") or "of this host"
        return (
            f"Out of memory: {what}. Give smaller batches (config.data.datasets.NAME.batch_size), "
            "or more devices to the model axis (config.mesh.model); flamingo_jax.plan says what a "
            "config needs. --verbosity=1 shows where it was."
        )
    return f"{type(error).__name__}: {error}"


def _is_out_of_memory(error: BaseException | None) -> bool:
    in_jax = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return in_jax or isinstance(error, MemoryError)


def _join(mode: str) -> bool:
    """Joins the other processes if there are or may be any, and returns True if it joined.

    Raises:
        ProcessError: if this fails.
    """
    if mode == "off":
        return False
    address, count, index = _from_environment()
    if count == 1 or (count is None and mode == "auto" and not _on_tpu()):
        return False
    if address and index == 0:
        _check_port(address)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # used on CPUs only
    where = (
        "as one of several processes"
        if count is None
        else f"as process {index} of {count} at {address}"
    )
    hint = threading.Timer(
        HINT_SECONDS, _say, [f"{where.removeprefix('as ')}: still waiting for the others to start"]
    )
    # XLA would end the process a little later, with a page of text.
    end = threading.Timer(JOIN_SECONDS, _end_alone, [where])
    for timer in (hint, end):
        timer.daemon = True
        timer.start()
    try:
        with preemption.before_abort(lambda: _end_refused(where)):
            jax.distributed.initialize(
                address,
                count,
                index,
                initialization_timeout=JOIN_SECONDS + 60,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=LEAVE_SECONDS,
            )
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProcessError(f"Cannot start {where}: {reason} {_START_ALL}") from error
    finally:
        hint.cancel()
        end.cancel()
    return True


def _check_port(address: str) -> None:
    """Checks that process 0 can listen: JAX crashes if it cannot.

    Raises:
        ProcessError: if the port is taken.
    """
    port = address.rpartition(":")[2]
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", int(port)))
    except (OSError, ValueError, OverflowError) as error:
        raise ProcessError(
            f"Cannot start as process 0 at {address}: {error}. Give {_ADDRESS} a free port of this "
            f"machine; and each process its own {_INDEX}, since only process 0 listens there."
        ) from error


def _end_alone(where: str) -> None:
    _say(f"Cannot start {where}: not all processes came within {JOIN_SECONDS} s. {_START_ALL}")
    os._exit(exit_status.STUCK)


def _end_refused(where: str) -> None:
    """Ends this process when XLA aborts it; its page of text is written already."""
    _say(
        f"Cannot start {where}: another process has the same {_INDEX}, or the first process ended. "
        f"{_START_ALL}"
    )
    os._exit(exit_status.STUCK)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _from_environment() -> tuple[str | None, int | None, int | None]:
    """Returns the coordinator's address, the number of processes and the index of this process.

    All are None if the environment does not name the processes.

    Raises:
        ProcessError: if only a part is set, or a number is not valid.
    """
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    # With the address alone, JAX reads it and finds the numbers itself.
    if set(found) <= {_ADDRESS}:
        return None, None, None
    if missing := [name for name in VARIABLES if name not in found]:
        raise ProcessError(
            f"The environment has {', '.join(found)}, but not {', '.join(missing)}: set all three "
            f"of {', '.join(VARIABLES)}, or none."
        )
    if not (
        found[_COUNT].isdecimal()
        and found[_INDEX].isdecimal()
        and int(found[_INDEX]) < int(found[_COUNT])
    ):
        raise ProcessError(
            f"The environment has {_INDEX}={found[_INDEX]} and {_COUNT}={found[_COUNT]}; expected "
            "a count, and an index from 0 to the count - 1."
        )
    return found[_ADDRESS], int(found[_COUNT]), int(found[_INDEX])


def _on_tpu() -> bool:
    """Returns True if this machine has TPU chips that JAX will use; reads local files only."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "tpu" not in platforms.split(","):
        return False
    return importlib.util.find_spec("libtpu") is not None and devices.has_device(*devices.TPU)
