"""What disturbs a run: the table `KINDS`. When: the table `moments.MOMENTS`.

    before the attempt    it starts         at the moment        after it ended
    kind.prepare          clocks            kind.strike          kind.repair

To add a kind, write its functions and a line of KINDS. A moment is a function that waits until the
run is there. Every kind happens at every moment, unless its line says otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Mapping

from flamingo_jax.checkpoint import manifest
from flamingo_jax.core import exit_status, paths
from tests.e2e import attempts
from tests.e2e.attempts import wait_for
from tests.e2e.moments import MOMENTS
from tests.e2e.scene import Scene

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
