"""One round of the torture test: a run, its processes, and its small disk."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import subprocess
import time
from collections.abc import Callable, Mapping

from tests.e2e import attempts
from tests.e2e.attempts import Attempt, Job, wait_for

DISK_MIB = 64


class Disk:
    """A small disk for the workdirs, which can be filled and made read-only. Needs root."""

    def __init__(self, place: pathlib.Path):
        """Mounts a tmpfs on a new directory.

        Raises:
            PermissionError: this process may not mount.
        """
        self.place = place
        place.mkdir(parents=True)
        options = f"size={DISK_MIB}m"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise PermissionError(done.stderr.decode().strip())

    def fill(self) -> None:
        """Leaves no free byte."""
        with (self.place / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        """Undoes `fill`."""
        (self.place / "filler").unlink(missing_ok=True)

    def make(self, *, writable: bool) -> bool:
        """Mounts the disk again; returns False if a process has a file open for writing."""
        option = "remount,rw" if writable else "remount,ro"
        return not subprocess.run(
            ["mount", "-o", option, self.place], capture_output=True, check=False
        ).returncode

    def close(self) -> None:
        """Unmounts the disk."""
        subprocess.run(["umount", "--lazy", self.place], capture_output=True, check=False)


@dataclasses.dataclass
class Scene:
    """One round: an attempt that is disturbed.

    Attributes:
        job: what runs.
        rng: of this round.
        workdir: of the run; a kind may move it.
        scratch: a directory for the round's own files.
        startup: seconds from the start of an undisturbed run to its first report.
        disk: the disk of the workdir, if it is a small one.
        attempt: the processes.
        before: the newest sound step when the attempt starts.
        victims: the processes that are disturbed.
        environments: {process: its own variables}.
        damaged: the steps of checkpoints that this round damages.
        problems: what went wrong, as a kind itself sees it.
    """

    job: Job
    rng: random.Random
    workdir: pathlib.Path
    scratch: pathlib.Path
    startup: float
    disk: Disk | None = None
    attempt: Attempt | None = None
    before: int = 0
    victims: tuple[int, ...] = (0,)
    environments: dict[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    damaged: list[int] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    _state: tuple[int, ...] = ()
    _reported: int = -1

    def start(self) -> Attempt:
        """Starts the attempt."""
        self._state = state_of(self.workdir / "metrics.jsonl")
        self.attempt = self.job.start(
            self.workdir, self.scratch / "attempt", environments=self.environments
        )
        return self.attempt

    def reported(self) -> int:
        """Returns the last step that this attempt reported; -1 before the first one."""
        # The file may have rows of later steps, of an attempt before, until this one drops them.
        now = state_of(self.workdir / "metrics.jsonl")
        if now != self._state:
            self._state, self._reported = now, attempts.last_report(self.workdir)
        return self._reported

    @property
    def running(self) -> Attempt:
        """The attempt, after it started."""
        assert self.attempt is not None
        return self.attempt

    def until(self, condition: Callable[[], bool], *, every: float = 0.002) -> bool:
        """Waits until the condition is true; returns False if a process ends before that."""
        ended = lambda: not self.running.is_whole()
        wait_for(lambda: ended() or condition(), seconds=attempts.PATIENCE, every=every)
        return not ended()

    def sleep(self, most: float) -> bool:
        """Waits for a random time; returns False if a process ends before that."""
        until = time.monotonic() + self.rng.uniform(0, most)
        return self.until(lambda: time.monotonic() > until)


def state_of(path: pathlib.Path) -> tuple[int, ...]:
    """Returns what changes when a file is written; () if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_ino, found.st_mtime_ns
