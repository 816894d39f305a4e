"""What disturbs a run, and when: the table `KINDS`, and the table `MOMENTS`.

    before the attempt    it starts         at the moment        after it ended
    kind.prepare          clocks            kind.strike          kind.repair

To add a kind, write its functions and a line of KINDS. A moment is a function that waits until the
run is there. Every kind happens at every moment, unless its line says otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping

from flamingo_jax.checkpoint import manifest
from flamingo_jax.core import exit_status, paths
from tests.e2e import attempts
from tests.e2e.attempts import Attempt, Job, wait_for

DISK_MIB = 64
# How long the others may wait for a process that was killed before it joined them: a launcher ends
# them, as launch/tpu_worker.sh does, and so does this harness.
LAUNCHER_SECONDS = 20

_CLOCK = """
import os, time

_shift, _after = float(os.environ["CLOCK_SHIFT"]), float(os.environ["CLOCK_AFTER"])
_real, _real_ns, _begin = time.time, time.time_ns, time.monotonic()
_jump = lambda: _shift if time.monotonic() - _begin > _after else 0.0
time.time = lambda: _real() + _jump()
time.time_ns = lambda: _real_ns() + int(_jump() * 1e9)
"""


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
        self._state = _state(self.workdir / "metrics.jsonl")
        self.attempt = self.job.start(
            self.workdir, self.scratch / "attempt", environments=self.environments
        )
        return self.attempt

    def reported(self) -> int:
        """Returns the last step that this attempt reported; -1 before the first one."""
        # The file may have rows of later steps, of an attempt before, until this one drops them.
        now = _state(self.workdir / "metrics.jsonl")
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


def _before(scene: Scene) -> bool:
    """Returns True at once: the processes have just been started."""
    return True


def _starting(scene: Scene) -> bool:
    # the line that describes the run comes after everything is read, and before the first step
    line = f" of {scene.job.steps}: "
    until = time.monotonic() + scene.rng.uniform(0, scene.startup)
    over = lambda: time.monotonic() > until or line in scene.running.text(0)
    return scene.until(over, every=0.01)


def _compiling(scene: Scene) -> bool:
    line, wait = f" of {scene.job.steps}: ", scene.rng.uniform(0, 0.2 * scene.startup)
    if not scene.until(lambda: line in scene.running.text(0), every=0.01):
        return False
    until = time.monotonic() + wait
    return scene.until(lambda: time.monotonic() > until or scene.reported() > scene.before)


def _training(scene: Scene) -> bool:
    goal = scene.before + scene.rng.randint(1, 9)
    return scene.until(lambda: scene.reported() >= goal) and scene.sleep(0.05)


def _saving(scene: Scene) -> bool:
    goal, old = scene.rng.randint(1, 5), set(_names(scene))
    seen: set[str] = set()

    def sees() -> bool:
        seen.update(name for name in _names(scene) if "tmp" in name and name not in old)
        return len(seen) >= goal

    return scene.until(sees, every=0.0005) and scene.sleep(scene.rng.choice([0, 0.003, 0.03]))


def _renaming(scene: Scene) -> bool:
    goal, seen = scene.rng.randint(1, 5), set()

    def sees() -> bool:
        seen.update(name for name in _names(scene) if name.isdigit() and int(name) > scene.before)
        return len(seen) >= goal

    return scene.until(sees, every=0.0005) and scene.sleep(scene.rng.choice([0, 0.001, 0.01]))


def _logging(scene: Scene) -> bool:
    path, goal = scene.workdir / "metrics.jsonl", scene.rng.randint(1, 9)
    changes, last = 0, _state(path)

    def sees() -> bool:
        nonlocal changes, last
        if (now := _state(path)) != last:
            changes, last = changes + 1, now
        return changes >= goal

    return scene.until(sees, every=0.0002)


def _evaluating(scene: Scene) -> bool:
    every = scene.job.evaluates_every
    step = (scene.before // every + scene.rng.randint(1, 2)) * every
    return scene.until(lambda: scene.reported() >= step) and scene.sleep(0.3)


def _exporting(scene: Scene) -> bool:
    place = scene.workdir / ".export.tmp"
    old = _state(place)  # of an attempt before
    sees = lambda: _state(place) not in (old, ())
    return scene.until(sees, every=0.0005) and scene.sleep(0.08)


def _names(scene: Scene) -> list[str]:
    try:
        return os.listdir(scene.workdir / "checkpoints")
    except FileNotFoundError:
        return []


def _state(path: pathlib.Path) -> tuple[int, ...]:
    """Returns what changes when a file is written; () if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_ino, found.st_mtime_ns


MOMENTS: Mapping[str, Callable[[Scene], bool]] = {
    "before": _before,
    "starting": _starting,
    "compiling": _compiling,
    "training": _training,
    "saving": _saving,
    "renaming": _renaming,
    "logging": _logging,
    "evaluating": _evaluating,
    "exporting": _exporting,
}
# After the last step there is nothing else to do.
AT_THE_END = ("before", "starting", "exporting")


def nothing(scene: Scene) -> None:
    """Does nothing."""


def kill(scene: Scene) -> None:
    """Sends SIGKILL, which leaves no time to clean up."""
    scene.running.send(signal.SIGKILL, scene.victims)


def terminate(scene: Scene) -> None:
    """Sends SIGTERM, as a preemption does."""
    scene.running.send(signal.SIGTERM, scene.victims)


def interrupt(scene: Scene) -> None:
    """Sends SIGINT, as Ctrl-C does."""
    scene.running.send(signal.SIGINT, scene.victims)


def signal_twice(scene: Scene) -> None:
    """Sends SIGTERM or SIGINT, and again a moment later."""
    number = scene.rng.choice([signal.SIGTERM, signal.SIGINT])
    for _ in range(2):
        scene.running.send(number, scene.victims)
        time.sleep(scene.rng.choice([0, 0.01, 0.1]))


def pause(scene: Scene) -> None:
    """Stops processes for a moment. The run must go on afterwards, until it is killed."""
    scene.running.send(signal.SIGSTOP, scene.victims)
    time.sleep(scene.rng.uniform(0.1, 1.5))
    scene.running.send(signal.SIGCONT, scene.victims)
    scene.sleep(0.5)
    kill(scene)


def freeze(scene: Scene) -> None:
    """Stops processes for good: the others must notice it and end. A single one is killed."""
    scene.running.send(signal.SIGSTOP, scene.victims)
    others = {*range(scene.job.processes)} - {*scene.victims}
    if others and not wait_for(
        lambda: not others & {*scene.running.running()}, seconds=attempts.BOUND, every=0.05
    ):
        scene.problems.append(f"processes {others} still wait for {scene.victims}, which is frozen")
    kill(scene)


def start_second(scene: Scene) -> None:
    """Starts the same command again while it runs: it must refuse; then kills the first."""
    second = scene.job.start(scene.workdir, scene.scratch / "second")
    statuses = second.statuses(attempts.BOUND)
    if statuses != [exit_status.ERROR] and scene.running.is_whole():
        scene.problems.append(f"a second run in one workdir ended with {statuses}")
    if len(second.reasons(0)) > 1 or "Traceback" in second.text(0):
        scene.problems.append(f"a second run prints {second.text(0)[-2000:]}")
    scene.problems += [f"the second run left {pid}" for pid in second.left_behind()]
    kill(scene)


def fill_disk(scene: Scene) -> None:
    """Leaves no room. The run must end by itself."""
    assert scene.disk
    scene.disk.fill()


def free_disk(scene: Scene) -> None:
    """Makes room again."""
    assert scene.disk
    scene.disk.free()


def forbid_writing(scene: Scene) -> None:
    """Makes the disk read-only: the run must end by itself. Kills it if a file stays open."""
    disk = scene.disk
    assert disk
    if not wait_for(lambda: disk.make(writable=False), seconds=2, every=0.001):
        kill(scene)


def allow_writing(scene: Scene) -> None:
    """Makes the disk writable again."""
    assert scene.disk
    scene.disk.make(writable=True)


def flip_bit(scene: Scene) -> None:
    """Flips one bit of the newest checkpoint."""
    file = _file_of_newest(scene)
    data = bytearray(file.read_bytes())
    place = scene.rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    file.write_bytes(data)


def cut_file(scene: Scene) -> None:
    """Cuts a file of the newest checkpoint in half."""
    file = _file_of_newest(scene)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_file(scene: Scene) -> None:
    """Removes a file of the newest checkpoint."""
    _file_of_newest(scene).unlink()


def empty_directory(scene: Scene) -> None:
    """Empties the directory of the newest checkpoint."""
    newest = _newest(scene)
    shutil.rmtree(newest)
    newest.mkdir()


def _newest(scene: Scene) -> pathlib.Path:
    step = attempts.sound_steps(scene.workdir)[-1]
    scene.damaged.append(step)
    return scene.workdir / "checkpoints" / str(step)


def _file_of_newest(scene: Scene) -> pathlib.Path:
    """Returns a file that the run reads; orbax has others, which nobody needs."""
    newest = _newest(scene)
    files = [newest / name for name in manifest.files(paths.Path(newest))]
    files = [path for path in [*files, newest / manifest.NAME] if path.stat().st_size]
    # Names of data files are random; their order by size is not.
    files.sort(key=lambda path: (path.stat().st_size, path.parent))
    return scene.rng.choice(files)


def move(scene: Scene) -> None:
    """Copies the workdir elsewhere, to a name that needs care, and removes the first one."""
    number = scene.rng.randrange(10**6)
    target = scene.workdir.with_name(f"moved [{number}] {scene.workdir.name[:12]}")
    shutil.copytree(scene.workdir, target)
    shutil.rmtree(scene.workdir)
    scene.workdir = target


def shift_clock(hours: float) -> Callable[[Scene], None]:
    """Returns a function that makes the clock of the victims jump while they run."""

    def prepare(scene: Scene) -> None:
        place = scene.scratch / "clock"
        place.mkdir(parents=True)
        (place / "sitecustomize.py").write_text(_CLOCK)
        variables = {
            "CLOCK_SHIFT": str(3600 * hours),
            "CLOCK_AFTER": str(scene.rng.uniform(0, 1.5 * scene.startup)),
            "PYTHONPATH": f"{place}{os.pathsep}{attempts.ROOT}",
        }
        scene.environments = dict.fromkeys(scene.victims, variables)

    return prepare


def always(scene: Scene) -> bool:
    """The kind is possible in each round."""
    return True


def has_two_checkpoints(scene: Scene) -> bool:
    """Damage is mended by an older checkpoint."""
    return len(attempts.sound_steps(scene.workdir)) >= 2


def has_checkpoint(scene: Scene) -> bool:
    """There is something to move."""
    return bool(attempts.sound_steps(scene.workdir))


def has_disk(scene: Scene) -> bool:
    """The workdir is on a small disk."""
    return scene.disk is not None


def is_one_process(scene: Scene) -> bool:
    """A second cluster would need a second set of processes."""
    return scene.job.processes == 1


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to disturb an attempt.

    Attributes:
        strike: acts at the moment; the attempt must end then.
        prepare: acts before the attempt starts.
        repair: acts after it ended.
        possible: whether it can be done now.
        moments: when it may happen; all by default.
        weight: how often it happens, compared with others.
        statuses: with which the program itself may end the processes; signals that were sent, and
            the status of a run that was done already, are allowed in any case.
        saves: True if nothing may be done twice: the run saves before it ends.
    """

    strike: Callable[[Scene], None]
    prepare: Callable[[Scene], None] = nothing
    repair: Callable[[Scene], None] = nothing
    possible: Callable[[Scene], bool] = always
    moments: tuple[str, ...] = tuple(name for name in MOMENTS if name != "before")
    weight: int = 1
    statuses: tuple[int, ...] = ()
    saves: bool = False


_ASKED = (exit_status.ENDED_AS_ASKED,)
_AT_ONCE = tuple(exit_status.of_signal(each) for each in (signal.SIGINT, signal.SIGTERM))
_ERROR = (exit_status.ERROR,)
_AFTER_DAMAGE = ("starting", "compiling", "training", "saving")
_IN_THE_LOOP = ("training", "saving", "renaming", "logging", "evaluating")

KINDS: Mapping[str, Kind] = {
    "SIGKILL": Kind(kill, weight=3),
    "SIGTERM": Kind(terminate, weight=2, statuses=_ASKED, saves=True),
    "SIGINT": Kind(interrupt, statuses=_ASKED, saves=True),
    "two signals": Kind(signal_twice, statuses=(*_ASKED, *_AT_ONCE)),
    "SIGSTOP and SIGCONT": Kind(pause),
    "SIGSTOP for good": Kind(freeze, moments=("training", "saving")),
    "second run": Kind(start_second, possible=is_one_process, moments=("training", "evaluating")),
    "flipped bit": Kind(kill, flip_bit, possible=has_two_checkpoints, moments=_AFTER_DAMAGE),
    "cut file": Kind(kill, cut_file, possible=has_two_checkpoints, moments=_AFTER_DAMAGE),
    "missing file": Kind(kill, remove_file, possible=has_two_checkpoints, moments=_AFTER_DAMAGE),
    "empty directory": Kind(
        kill, empty_directory, possible=has_two_checkpoints, moments=_AFTER_DAMAGE
    ),
    "clock an hour back": Kind(kill, shift_clock(-1), moments=_IN_THE_LOOP),
    "clock an hour ahead": Kind(kill, shift_clock(1), moments=_IN_THE_LOOP),
    "moved workdir": Kind(kill, move, possible=has_checkpoint, moments=("starting", "training")),
    "full disk": Kind(
        fill_disk,
        repair=free_disk,
        possible=has_disk,
        moments=("before", *_IN_THE_LOOP, "exporting"),
        statuses=_ERROR,
    ),
    "read-only disk": Kind(
        forbid_writing,
        repair=allow_writing,
        possible=has_disk,
        moments=("before", "training", "saving"),
        statuses=_ERROR,
    ),
}
