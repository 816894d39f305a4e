"""A workdir belongs to one run: WORKDIR/run.json names it.

    {id, host, pid, process, started, config}

A start writes its own id there, also in place of an earlier one: the run that was preempted goes on
without a question. Process 0 reads the file again before each save and each export. If it holds
another id, another start took the workdir over, and this run ends without writing.

On one machine the lock of `paths.only_writer` refuses the second run at once. The id serves where
there is no lock: on object stores and some network file systems. All processes must find the id of
process 0, so that a workdir on a local disk of each host is noticed before anything is compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from flamingo_jax.core import agreement, object_store, paths

FILE_NAME = "run.json"

# How long other hosts may see an old state of the directory, on a network file system.
_VISIBLE_SECONDS = 20.0
# How long a save of the run before may take from its check to its first file.
_SETTLE_SECONDS = 3.0
_ATTEMPTS = 3  # to read the file, on a network that fails for a moment


class WorkdirTaken(paths.PathError):
    """The workdir is not this run's, or not the same directory in all processes."""


@dataclasses.dataclass(frozen=True)
class RunId:
    """The claim of this run on its workdir.

    Attributes:
      id: of this start, the same in all processes.
      workdir: the directory.
    """

    id: str
    workdir: paths.Path
    _before: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Ends this run if another one took the workdir over; all processes call it together.

        Raises:
            WorkdirTaken: in all processes, if the workdir has another id.
        """
        if found := agreement.verdict("", lambda _: self._problem()):
            raise WorkdirTaken(found)

    @contextlib.contextmanager
    def given_back_after_an_error(self) -> Iterator[None]:
        """Writes the id from before again if this start finds that it may not use the workdir."""
        try:
            yield
        except Exception:
            if jax.process_index() == 0 and self._before and not self._problem():
                paths.write_json(self.workdir / FILE_NAME, self._before)
            raise

    def _problem(self) -> str:
        theirs = _read(self.workdir)
        if theirs is None or theirs["id"] == self.id:
            return ""
        return (
            f"{self.workdir} belongs to another run now: process {theirs.get('pid')} on "
            f"{theirs.get('host')}, started {theirs.get('started')}, took it over; this run ends "
            "without saving. Give one of the two another --workdir, or leave the other one alone."
        )


@contextlib.contextmanager
def lock(workdir: paths.Path) -> Iterator[bool]:
    """Keeps other runs out of a workdir; process 0 does it.

    Yields:
        True if there is a lock.

    Raises:
        PathError: if another run has it.
    """
    if jax.process_index() > 0:
        yield False
        return
    with paths.only_writer(workdir) as locked:
        yield locked


def claim(workdir: paths.Path, record: Mapping[str, Any], *, locked: bool) -> RunId:
    """Makes the workdir this run's; all processes call it together.

    Args:
        workdir: an existing directory.
        record: of the run; its hash is stored.
        locked: True if a lock keeps all other runs out.

    Raises:
        WorkdirTaken: in all processes, if it is another directory in one of them.
        PathError: if the file cannot be written.
    """
    before: Mapping[str, Any] | None = None

    def write(_: list[str]) -> str:
        nonlocal before
        mine = _description(record)
        if not paths.create(workdir / FILE_NAME, json.dumps(mine, indent=2, allow_nan=False)):
            before = _read(workdir)
            paths.write_json(workdir / FILE_NAME, mine)
            if not locked:
                time.sleep(_SETTLE_SECONDS)
        return json.dumps([mine["id"], mine["host"]], allow_nan=False)

    own, host = json.loads(agreement.verdict("", write))
    seen = [socket.gethostname(), str(paths.absolute(workdir)), _sees(workdir, own)]
    run = RunId(own, workdir, before)
    if found := agreement.verdict(
        json.dumps(seen, allow_nan=False),
        lambda texts: run._problem() or _strangers(texts, host),
    ):
        raise WorkdirTaken(found)
    return run


def hash_of(record: Mapping[str, Any]) -> str:
    """Returns a hash of a run's record."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _description(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": jax.process_index(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": hash_of(record),
    }


def _read(workdir: paths.Path) -> dict[str, Any] | None:
    """Returns what the file holds; None if it is missing, cut off or no description of a run."""
    for attempt in range(_ATTEMPTS):
        try:
            found = paths.parse_json(_text(workdir / FILE_NAME))
            return found if isinstance(found, dict) and isinstance(found.get("id"), str) else None
        except (FileNotFoundError, ValueError):
            return None
        except paths.NotAFileError:
            raise
        except OSError as error:
            if attempt == _ATTEMPTS - 1:
                raise paths.PathError(
                    f"Cannot read {workdir / FILE_NAME}: {error.strerror or error}. Check the "
                    "file system of the --workdir."
                ) from error
            time.sleep(1)
    return None


def _text(file: paths.Path) -> str:
    content = (
        paths.regular(file).read_bytes() if paths.is_local(file) else object_store.read(str(file))
    )
    return content.decode()


def _sees(workdir: paths.Path, own: str) -> bool:
    """Returns True as soon as this process reads the id; False if it does not for some seconds."""
    end = time.monotonic() + _VISIBLE_SECONDS
    while True:
        found = _read(workdir)
        if found is not None and found["id"] == own:
            return True
        if time.monotonic() > end or jax.process_index() == 0:
            return False
        time.sleep(0.2)


def _strangers(texts: list[str], host: str) -> str:
    """Returns what is wrong with the directories of the processes; "" if they are one."""
    seen = [json.loads(text) for text in texts]
    lost = [index for index, (_, _, sees) in enumerate(seen) if not sees]
    if not lost:
        return ""
    named = ", ".join(f"{seen[i][1]} on process {i} ({seen[i][0]})" for i in lost[:4])
    more = f" and {len(lost) - 4} more" if len(lost) > 4 else ""
    return (
        f"The workdir {named}{more} is not the directory of process 0, {seen[0][1]} ({host}): it "
        "must be on a file system that all hosts share, or gs://."
    )
