"""Notices a process that does not go on.

    loop --at(phase, step)--> Watchdog <--look, each second-- a thread: is the limit passed?

Each phase has a limit. For reading a batch and for an update it adapts: LATE times the median of
the last updates, but at least `stuck_seconds`. Compiling, saving and evaluating have more. Seconds
in which the whole process, or the machine, was suspended do not count.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import statistics
import sys
import threading
import time
from collections.abc import Mapping

LATE = 20.0  # medians of the last updates after which one is late
_MEDIAN_OF = 101  # updates
_ENOUGH = 5  # updates after which there is a median; the first ones do not wait for the devices
_FIRST = 5.0  # multiple of stuck_seconds for the updates before, and for the first batch
_COMPILING = 60.0  # the same for a process that compiles
_LONGEST_TICK = 2.0  # seconds; what is longer is a suspended process

# Files of JAX whose functions are on the stack of a thread that traces, lowers or compiles.
_COMPILER = (
    "jax/_src/compiler.py",
    "jax/_src/interpreters/mlir.py",
    "jax/_src/interpreters/partial_eval.py",
)


class Phase(enum.Enum):
    """What a process does. The number is its limit, as a multiple of `stuck_seconds`."""

    STARTING = ("starting", 30.0)  # reads and checks towers and checkpoints
    READING = ("reading the next batch", 1.0)
    UPDATING = ("in the update", 1.0)
    SAVING = ("saving", 15.0)
    MEASURING = ("evaluating", 60.0)
    CLOSING = ("waiting for the last save", 15.0)
    EXPORTING = ("exporting", 60.0)
    ENDING = ("waiting for the other processes to end", 15.0)

    def __init__(self, words: str, times: float) -> None:
        self.words, self.times = words, times

    @property
    def order(self) -> int:
        """Number of the phase within a step; the processes go through them in this order."""
        return list(Phase).index(self)


@dataclasses.dataclass(frozen=True)
class Activity:
    """What a process does.

    Attributes:
      phase: since when it did not change it, see `seconds`.
      step: updates done.
      seconds: how long it is in this phase.
      limit: seconds after which it counts as stuck.
      compiles: True if it compiles now.
    """

    phase: Phase
    step: int
    seconds: float
    limit: float
    compiles: bool = False

    @property
    def is_late(self) -> bool:
        """True if the limit is passed."""
        return self.seconds > self.limit

    def is_behind(self, other: Activity) -> bool:
        """Returns True if `other` may have to wait until this process goes on."""
        return (self.step, self.phase.order) < (other.step, other.phase.order) or (
            self.compiles and not other.compiles
        )

    def words(self) -> str:
        """Returns "at step 49, reading the next batch for 121 s"."""
        doing = "compiling" if self.compiles else self.phase.words
        return f"at step {self.step}, {doing} for {self.seconds:.0f} s"

    def to_json(self) -> dict[str, object]:
        """Returns the fields for another process."""
        limit = self.limit if math.isfinite(self.limit) else None
        return {**dataclasses.asdict(self), "phase": self.phase.name, "limit": limit}

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Activity:
        """The inverse of `to_json`."""
        values = dict(fields)
        limit = values["limit"]
        values["limit"] = math.inf if limit is None else limit
        return cls(**{**values, "phase": Phase[str(fields["phase"])]})  # type: ignore[arg-type]


class AwakeClock:
    """Seconds in which this process ran, by a clock that nobody sets.

    A process that was stopped, or a machine that slept, finds a long time between two ticks. Only
    _LONGEST_TICK of it counts.
    """

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.monotonic()

    def tick(self) -> float:
        """Is called about each second; returns the seconds."""
        now = time.monotonic()
        self.seconds += min(now - self._last, _LONGEST_TICK)
        self._last = now
        return self.seconds


class Watchdog:
    """Knows what this process does, and for how long it may do so. `at` costs a microsecond."""

    def __init__(self, clock: AwakeClock) -> None:
        self._clock = clock
        self._main = threading.main_thread().ident
        self.watch(0.0)

    def watch(self, stuck_seconds: float) -> None:
        """Sets the limits of a run that starts now, the first or another one; 0 is none."""
        self._stuck = stuck_seconds
        self._phase, self._step, self._since = Phase.STARTING, 0, self._clock.seconds
        self._update_began: float | None = None
        self._updates = 0
        self._durations: collections.deque[float] = collections.deque(maxlen=_MEDIAN_OF)

    def at(self, phase: Phase, step: int | None = None) -> None:
        """Says what the main thread does from now on, after `step` updates; None: as before."""
        now = time.monotonic()
        if self._phase is Phase.UPDATING and self._update_began is not None:
            self._updates += 1
            if self._updates > 1:  # the first one compiles
                self._durations.append(now - self._update_began)
            self._update_began = None
        if phase is Phase.READING:
            self._update_began = now
        step = self._step if step is None else step
        self._phase, self._step, self._since = phase, step, self._clock.seconds

    def activity(self) -> Activity:
        """Returns what the main thread does."""
        phase, step, since = self._phase, self._step, self._since
        compiles = self._compiles()
        return Activity(
            phase, step, self._clock.seconds - since, self._limit(phase, compiles), compiles
        )

    def _limit(self, phase: Phase, compiles: bool) -> float:
        if not self._stuck:
            return math.inf
        if compiles:
            return _COMPILING * self._stuck
        if phase not in (Phase.READING, Phase.UPDATING):
            return phase.times * self._stuck
        if self._updates == 0:
            return (_FIRST if phase is Phase.READING else _COMPILING) * self._stuck
        if len(self._durations) < _ENOUGH:
            return (1.0 if phase is Phase.READING else _FIRST) * self._stuck
        return max(self._stuck, LATE * statistics.median(list(self._durations)))

    def _compiles(self) -> bool:
        frame = sys._current_frames().get(self._main or 0)
        while frame is not None:
            if frame.f_code.co_filename.endswith(_COMPILER):
                return True
            frame = frame.f_back
        return False
