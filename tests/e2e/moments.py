"""When a run is disturbed: the table `MOMENTS`.

A moment is a function that waits until the run is there; it returns False if that does not happen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from tests.e2e.scene import Scene, state_of


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
    changes, last = 0, state_of(path)

    def sees() -> bool:
        nonlocal changes, last
        if (now := state_of(path)) != last:
            changes, last = changes + 1, now
        return changes >= goal

    return scene.until(sees, every=0.0002)


def _evaluating(scene: Scene) -> bool:
    every = scene.job.evaluates_every
    step = (scene.before // every + scene.rng.randint(1, 2)) * every
    return scene.until(lambda: scene.reported() >= step) and scene.sleep(0.3)


def _exporting(scene: Scene) -> bool:
    place = scene.workdir / ".export.tmp"
    old = state_of(place)  # of an attempt before
    sees = lambda: state_of(place) not in (old, ())
    return scene.until(sees, every=0.0005) and scene.sleep(0.08)


def _names(scene: Scene) -> list[str]:
    try:
        return os.listdir(scene.workdir / "checkpoints")
    except FileNotFoundError:
        return []


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
