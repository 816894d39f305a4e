"""What the processes of a run know of each other, through the key-value store of jax.distributed.

    flamingo_jax/alive/INDEX   what the process does, written again each few seconds
    flamingo_jax/news/...      small and rare: who left and why, who was asked to end, and the
                               points at which the processes agree to stop

Process 0 serves the store. All calls may raise LOST if it is gone, or take long if it is stopped.
"""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

import jax
from jax._src import distributed

from flamingo_jax.core.phases import Activity

LOST = jax.errors.JaxRuntimeError  # what the store raises
_ALIVE, _NEWS, _STOPPED = (f"flamingo_jax/{name}/" for name in ("alive", "news", "stopped"))
_FOR_EVER_MS = 10**9


class Left(NamedTuple):
    """A process that ended.

    Attributes:
      process: its index.
      host: its machine.
      how: FAILED; LOST_ANOTHER: it noticed that another one failed or is lost, and `why` says so;
          AT_ONCE: it was asked to end and had nothing to save; TOGETHER: at the point at which all
          processes end.
      why: one line.
    """

    process: int
    host: str
    how: str
    why: str


FAILED, LOST_ANOTHER = "failed", "lost another"
AT_ONCE, TOGETHER = "at once", "together"


class Asked(NamedTuple):
    """The process that was asked to end first, by which signal."""

    process: int
    host: str
    signal: str


class News(NamedTuple):
    """What happened so far.

    Attributes:
      left: the processes that ended.
      asked: set if the run was asked to end.
      points: {process: points at which it could have ended}, see `core.processes`.
    """

    left: dict[int, Left]
    asked: Asked | None
    points: dict[int, int]


class Peers:
    """The other processes, as one of them sees them."""

    def __init__(self, index: int, count: int, store: Any = None) -> None:
        """Connects to nothing.

        Args:
            index: of this process.
            count: of all.
            store: the client of the key-value store; None for that of jax.distributed.
        """
        self.index, self.count, self.host = index, count, socket.gethostname()
        self._store: Any = store if store is not None else key_value_store()

    def say_alive(self, beat: int, activity: Activity) -> None:
        """Writes what this process does; `beat` grows with each call."""
        line = json.dumps([beat, self.host, activity.to_json()], allow_nan=False)
        self._store.key_value_set(f"{_ALIVE}{self.index}", line, allow_overwrite=True)

    def alive(self) -> dict[int, tuple[int, str, Activity]]:
        """Returns {process: (beat, host, what it does)} of all that have said so."""
        return {
            index: (beat, host, Activity.from_json(fields))
            for index, (beat, host, fields) in self._read(_ALIVE).items()
        }

    def leave(self, how: str, why: str) -> None:
        """Says that this process ends."""
        line = json.dumps([self.host, how, why], allow_nan=False)
        self._store.key_value_set(f"{_NEWS}left/{self.index}", line, allow_overwrite=True)

    def ask_to_end(self, signal: str) -> None:
        """Says that this process was asked to end."""
        line = json.dumps([self.host, signal], allow_nan=False)
        self._store.key_value_set(f"{_NEWS}asked/{self.index}", line, allow_overwrite=True)

    def say_point(self, point: int) -> None:
        """Says how many points this process has passed, and that it waits there."""
        line = json.dumps(point, allow_nan=False)
        self._store.key_value_set(f"{_NEWS}point/{self.index}", line, allow_overwrite=True)

    def news(self) -> News:
        """Returns what happened so far."""
        found: dict[str, dict[int, Any]] = {"left": {}, "asked": {}, "point": {}}
        for key, line in self._store.key_value_dir_get(_NEWS):
            kind, index = key.removeprefix(_NEWS).split("/")
            found[kind][int(index)] = json.loads(line)
        asked = min(found["asked"].items(), default=None)
        return News(
            {index: Left(index, *fields) for index, fields in found["left"].items()},
            asked and Asked(asked[0], *asked[1]),
            found["point"],
        )

    def wait_for_end_of_store(self) -> None:
        """Returns when the connection to process 0 is lost, or after `stop_waiting`."""
        try:
            self._store.blocking_key_value_get(f"{_STOPPED}{self.index}", _FOR_EVER_MS)
        except LOST:
            return

    def first_answers(self) -> bool:
        """Returns True if process 0 accepts a connection; asks the network, not the store."""
        host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except (OSError, ValueError):
            return False
        return True

    def stop_waiting(self) -> None:
        """Lets `wait_for_end_of_store` return in this process."""
        self._store.key_value_set(f"{_STOPPED}{self.index}", "", allow_overwrite=True)

    def _read(self, directory: str) -> dict[int, Any]:
        entries = self._store.key_value_dir_get(directory)
        return {int(key.removeprefix(directory)): json.loads(line) for key, line in entries}


def key_value_store() -> Any:
    """Returns the client of the key-value store of jax.distributed."""
    # JAX has no public name for it; orbax and jax.experimental reach it so too.
    return distributed.global_state.client


def name(process: int, host: str) -> str:
    """Returns "process 1 (HOST)"."""
    return f"process {process} ({host})" if host else f"process {process}"
