"""Starts a training run as a user does, and reads what an attempt leaves: processes, logs, files.

An attempt is one start of the command: one process, or several that are a cluster of this machine.
Each process has a session of its own, so that what it leaves behind is found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.manifest import DamageError
from flamingo_jax.checkpoint.store import check_step
from flamingo_jax.checkpoint.store import steps as complete_steps
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.training import small

PATIENCE = 900  # seconds that an attempt may take; far more than it needs
BOUND = 400  # seconds within which all processes of a disturbed attempt must have ended
NOT_COMPARED = ("step_seconds",)  # of a report: they are measured

# A line that says why a program ended. "[process 1 of 4]" is in front of it on several processes.
_REASON = re.compile(
    r"^(\[process \d+ of \d+\] )?(\w*Error: |FATAL |Asked to end by |A second signal, "
    r"|Interrupted|Terminated|ends because |process \d+ .*is stuck |stuck |Cannot start )"
)
_STARTED: list[subprocess.Popen] = []


def end_all() -> None:
    """Kills what still runs of all attempts; when the harness itself is ended."""
    for process in _STARTED:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], *, seconds: float, every: float = 0.002) -> bool:
    """Waits until the condition is true; returns whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


@dataclasses.dataclass(frozen=True)
class Job:
    """The command of a run, without its --workdir.

    Attributes:
        stage: of tests/training/small.py.
        flags: all other flags.
        processes: how many processes are one run.
        steps: updates of the whole run.
        evaluates_every: updates between two evaluations; 0 is never.
    """

    stage: str
    flags: tuple[str, ...]
    processes: int
    steps: int
    evaluates_every: int = 0

    def start(
        self,
        workdir: pathlib.Path,
        logs: pathlib.Path,
        *,
        environments: Mapping[int, Mapping[str, str]] | None = None,
    ) -> Attempt:
        """Starts all processes.

        Args:
            workdir: of the run.
            logs: a new directory for what the processes print.
            environments: {process: variables that only this process gets}.
        """
        command = [sys.executable, "-m", "flamingo_jax.train"]
        command += [f"--config=tests/training/small.py:{self.stage}", *self.flags]
        variables = {
            **os.environ,
            "XLA_FLAGS": BASE_XLA_FLAGS,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilation takes most of the time
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }
        variables.pop("PYTEST_CURRENT_TEST", None)
        if self.processes > 1:
            command += ["--config.mesh.data=-1"]
            variables["JAX_COORDINATOR_ADDRESS"] = f"localhost:{_free_port()}"
            variables["JAX_NUM_PROCESSES"] = str(self.processes)
        logs.mkdir(parents=True)
        running = []
        for index in range(self.processes):
            own = {"JAX_PROCESS_ID": str(index)} if self.processes > 1 else {}
            with (logs / str(index)).open("w") as log:
                running.append(
                    subprocess.Popen(
                        [*command, f"--workdir={workdir}"],
                        cwd=ROOT,
                        env={**variables, **own, **(environments or {}).get(index, {})},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        _STARTED.extend(running)
        return Attempt(running, logs)


class Attempt:
    """The running processes of one start.

    Attributes:
        processes: in the order of their numbers.
        sent: the signals that each got.
    """

    def __init__(self, processes: Sequence[subprocess.Popen], logs: pathlib.Path):
        """Takes the processes and the directory of their logs."""
        self.processes, self._logs = list(processes), logs
        self.sent: list[set[int]] = [set() for _ in processes]

    def running(self) -> list[int]:
        """Returns the numbers of the processes that have not ended."""
        return [i for i, process in enumerate(self.processes) if process.poll() is None]

    def is_whole(self) -> bool:
        """Returns True while no process has ended."""
        return len(self.running()) == len(self.processes)

    def send(self, number: int, to: Sequence[int]) -> None:
        """Sends a signal to some of the processes that still run."""
        for index in to:
            self.sent[index].add(number)
            self.processes[index].send_signal(number)  # does nothing if it has ended

    def text(self, index: int) -> str:
        """Returns what a process printed."""
        return (self._logs / str(index)).read_text(errors="replace").replace("\r", "\n")

    def statuses(self, seconds: float) -> list[int | None]:
        """Waits for the ends of all processes; kills what still runs after so many seconds.

        Returns:
            The status of each as `subprocess` gives it (a signal is negative); None if it was
            killed here.
        """
        deadline = time.monotonic() + seconds
        found: list[int | None] = []
        for process in self.processes:
            try:
                found.append(process.wait(max(deadline - time.monotonic(), 0.01)))
            except subprocess.TimeoutExpired:
                found.append(None)
        for process in self.processes:
            process.kill()
            process.send_signal(signal.SIGCONT)
            process.wait()
        return found

    def left_behind(self) -> list[int]:
        """Returns the processes that run in a session of this attempt, and kills them."""
        sessions = {process.pid for process in self.processes}
        found = [pid for pid, session in _sessions() if session in sessions]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return found

    def reasons(self, index: int) -> list[str]:
        """Returns the lines in which a process says why it ended."""
        return [line for line in self.text(index).splitlines() if _REASON.match(line)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _sessions() -> list[tuple[int, int]]:
    """Returns (process, session) of all processes that run."""
    found = []
    for place in pathlib.Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                # after the name in brackets: state, parent, group, session
                state, _, _, session = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has ended
                continue
            if state != "Z":
                found.append((int(place.name), int(session)))
    return found


def inputs(place: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Makes a world and its towers below `place`, if they are not there; returns both."""
    world, towers = place / "world", place / "towers"
    if not towers.exists():
        small.make_towers(towers, small.make_world(world))
    return world, towers


def reports(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of metrics.jsonl, without times; a line that is cut off is left out."""
    path, found = workdir / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found.append({name: value for name, value in row.items() if name not in NOT_COMPARED})
    return found


def last_report(workdir: pathlib.Path) -> int:
    """Returns the last step that metrics.jsonl reports; 0 without a report."""
    return max((row["step"] for row in reports(workdir)), default=0)


def sound_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints from which the run can go on, oldest first."""
    found = []
    for step in complete_steps(workdir):
        with contextlib.suppress(DamageError):
            check_step(workdir, step)
            found.append(step)
    return found


def leftovers(workdir: pathlib.Path) -> list[str]:
    """Returns the temporary names below a workdir."""
    return sorted(
        str(path.relative_to(workdir)) for path in workdir.rglob("*") if "tmp" in path.name
    )


def differences(
    whole: pathlib.Path, other: pathlib.Path, step: int, *, asked: Iterable[int] = ()
) -> list[str]:
    """Compares two runs that are done: losses, moments, weights and exports, to the bit.

    Args:
        whole: the workdir of the undisturbed run.
        other: the other workdir.
        step: the last step.
        asked: steps at which the other run was asked to end, so that they were saved, too.

    Returns:
        One line for each kind of difference.
    """
    found = []
    a, b = reports(whole), reports(other)
    if a != b:
        steps = [[row["step"] for row in rows] for rows in (a, b)]
        unequal = [x["step"] for x, y in zip(a, b, strict=False) if x != y]
        found.append(
            f"metrics.jsonl differs: {len(a)} and {len(b)} rows, first at step {unequal[:1]}"
            + ("" if steps[0] == steps[1] else f"; steps {steps[1]}")
        )
    kept = complete_steps(whole)
    expected = sorted({*kept, *asked})[-len(kept) :]
    if (steps := complete_steps(other)) != expected:
        found.append(f"checkpoints of steps {steps}; expected {expected}")
    for name in (f"checkpoints/{step}/state", "export/weights"):
        x, y = _arrays(whole / name), _arrays(other / name)
        unequal = [
            key for key in {*x, *y} if key not in x or key not in y or not _equal(x[key], y[key])
        ]
        if unequal:
            found.append(f"{name}: {len(unequal)} of {len(x)} arrays differ, as {unequal[0]}")
    cards = [
        json.loads((each / "export" / "model.json").read_text())["content_hash"]
        for each in (whole, other)
    ]
    if cards[0] != cards[1]:
        found.append("content_hash of the exports differs")
    return found


def _arrays(directory: pathlib.Path) -> dict[str, np.ndarray]:
    found = arrays.read(directory, arrays.describe(directory))
    return {name: np.asarray(value) for name, value in jax.device_get(found).items()}


def _equal(x: np.ndarray, y: np.ndarray) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
