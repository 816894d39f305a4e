r"""Disturbs a run again and again, and compares what it makes with an undisturbed run, to the bit.

    python -m tests.e2e.torture --rounds=100 --seed=1 --processes=1 \
        [--stage=contrastive --evaluates] [--only=SIGKILL,SIGTERM] [--at=saving]

What a round does, and when, follows from the seed; the moment within a step is different each time.
The kinds and moments are the tables of disturbances.py and moments.py. After each round the same
command goes on, until the run is done. Then all is compared, and a new run begins. The program
prints a line for each round and a table of all; its status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from flamingo_jax.core import exit_status
from tests.e2e import attempts, disturbances, moments
from tests.e2e.attempts import Attempt, Job
from tests.e2e.disturbances import KINDS
from tests.e2e.moments import MOMENTS
from tests.e2e.scene import Disk, Scene

STEPS = 60
EVALUATES_EVERY = 12  # a multiple of the steps between two saves
TRIES = 3  # how often a round is tried whose run ends before the moment
AT_THE_END = 2  # rounds after the last step of each run


def make_job(
    stage: str, processes: int, world: pathlib.Path, towers: pathlib.Path, *, evaluates: bool
) -> Job:
    """Returns the command that is disturbed: 60 small steps; each second or fourth is saved."""
    save_every = 2 if processes == 1 else 4
    flags = [f"--config.steps={STEPS}", f"--config.hooks.save_every={save_every}"]
    flags += ["--config.hooks.keep=3"]
    flags += attempts.small.overrides(stage, world, towers if stage == "flamingo" else None)
    if evaluates:
        flags += [
            f"--config.evaluate.every={EVALUATES_EVERY}",
            "--config.evaluate.tasks=('world_retrieval',)",
            f"--config.evaluate.data.world={world}",
            "--config.evaluate.n=8",
        ]
    return Job(stage, tuple(flags), processes, STEPS, EVALUATES_EVERY if evaluates else 0)


def plan(seed: int, kinds: Sequence[str], moments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (kind, moment) for ever: all pairs in a random order, then all in another one."""
    rng = random.Random(seed)
    while True:
        pairs = [
            (name, moment)
            for name in kinds
            for moment in KINDS[name].moments
            if moment in moments
            for _ in range(KINDS[name].weight)
        ]
        if not pairs:
            raise ValueError(f"None of {kinds} happens at {moments}.")
        rng.shuffle(pairs)
        yield from pairs


@dataclasses.dataclass
class Counts:
    """What happened.

    Attributes:
        rounds: how often each (kind, moment) was done.
        statuses: with which statuses processes ended.
        not_reached: rounds whose run ended before the moment.
        runs: runs that were done and compared.
        again: steps that were done again.
        seconds: time of all rounds.
        problems: what was wrong.
    """

    rounds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    statuses: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    not_reached: int = 0
    runs: int = 0
    again: int = 0
    seconds: float = 0.0
    problems: list[str] = dataclasses.field(default_factory=list)

    def table(self) -> str:
        """Returns the counts as a Markdown table: kinds down, moments across."""
        moments = [each for each in MOMENTS if any(key[1] == each for key in self.rounds)]
        lines = [f"| kind | {' | '.join(moments)} | all |", "|---" * (len(moments) + 2) + "|"]
        for kind in KINDS:
            numbers = [self.rounds[kind, moment] for moment in moments]
            if sum(numbers):
                cells = [str(number or "") for number in numbers]
                lines.append(f"| {kind} | {' | '.join(cells)} | {sum(numbers)} |")
        statuses = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses.items()))
        lines += [
            "",
            f"{self.rounds.total()} disturbances, {self.runs} runs compared, {self.again} steps "
            f"done again, {self.not_reached} moments not reached, {self.seconds:.0f} s. "
            f"Statuses: {statuses}.",
        ]
        return "\n".join(lines)


class Torture:
    """Disturbs one job. `run` does the rounds."""

    def __init__(self, job: Job, place: pathlib.Path, seed: int, disk: Disk | None = None):
        """Runs the job undisturbed.

        Args:
            job: the command.
            place: a new directory.
            seed: decides what is done.
            disk: where the workdirs are; None for `place`.
        """
        self.job, self.place, self.seed, self.disk = job, place, seed, disk
        self.counts = Counts()
        self._whole, self._lives, self._scenes = place / "whole", 0, 0
        self._damaged: set[int] = set()
        self._asked: set[int] = set()
        self._disk_was_full = False
        begun = time.monotonic()
        attempt = job.start(self._whole, place / "logs" / "whole")
        attempts.wait_for(
            lambda: attempts.last_report(self._whole) or not attempt.running(),
            seconds=attempts.PATIENCE,
            every=0.05,
        )
        self._startup = time.monotonic() - begun
        statuses = attempt.statuses(attempts.PATIENCE)
        if set(statuses) != {exit_status.DONE}:
            raise RuntimeError(
                f"the undisturbed run ended with {statuses}\n{attempt.text(0)[-4000:]}"
            )
        self._say(f"undisturbed: {time.monotonic() - begun:.1f} s, {self._startup:.1f} to step 1")
        self._new_life()

    def run(self, rounds: int, pairs: Iterator[tuple[str, str]]) -> Counts:
        """Does so many rounds, and lets the last run end; returns the counts."""
        begun = time.monotonic()
        queue: list[tuple[str, str, int]] = []
        at_end = 0
        while self.counts.rounds.total() < rounds and len(self.counts.problems) < 20:
            while len(queue) < 20:
                queue.append((*next(pairs), 0))
            at_end = at_end + 1 if self._newest() == self.job.steps else 0
            chosen = next((each for each in queue if self._possible(*each[:2])), None)
            if at_end > AT_THE_END or (chosen is None and at_end):
                self._finish()
                continue
            if chosen is None:  # each needs checkpoints
                self._round("SIGKILL", "saving")
                continue
            queue.remove(chosen)
            kind, moment, tried = chosen
            if self._round(kind, moment):
                self.counts.rounds[kind, moment] += 1
            elif tried + 1 < TRIES:
                queue.insert(0, (kind, moment, tried + 1))
        self._finish()
        self.counts.seconds = time.monotonic() - begun
        return self.counts

    def _say(self, line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def _problem(self, where: str, what: str, attempt: Attempt | None = None) -> None:
        text = f"{where}: {what}"
        if attempt:
            text += "".join(
                f"\n  process {i}: " + "\n    | ".join(attempt.text(i).splitlines()[-8:])
                for i in range(self.job.processes)
            )
        self.counts.problems.append(text)
        self._say(f"PROBLEM {text}")

    def _newest(self) -> int:
        return max(attempts.sound_steps(self._workdir), default=0)

    def _new_life(self) -> None:
        self._lives += 1
        place = self.disk.place if self.disk else self.place
        self._workdir, self._damaged = place / f"run-{self._lives}", set()
        self._asked = set()
        self._disk_was_full = False

    def _scene(self) -> Scene:
        self._scenes += 1
        rng = random.Random(f"{self.seed}/{self._scenes}")
        everyone = range(self.job.processes)
        victims = tuple(everyone) if rng.random() < 0.4 else (rng.choice(everyone),)
        scratch = self.place / "logs" / str(self._scenes)
        return Scene(
            self.job, rng, self._workdir, scratch, self._startup, self.disk, victims=victims
        )

    def _possible(self, kind: str, moment: str) -> bool:
        newest = self._newest()
        if newest == self.job.steps and moment not in moments.AT_THE_END:
            return False
        if moment == "evaluating" and not self.job.evaluates_every:
            return False
        scene = Scene(
            self.job, random.Random(0), self._workdir, self.place, self._startup, self.disk
        )
        return KINDS[kind].possible(scene)

    def _round(self, name: str, moment: str) -> bool:
        """Does one round; returns False if the run ended before the moment."""
        kind, scene = KINDS[name], self._scene()
        where = f"{self._scenes:3d} {name}, {moment}"
        kind.prepare(scene)
        self._workdir = scene.workdir
        self._damaged |= {*scene.damaged}
        self._asked -= {*scene.damaged}
        self._disk_was_full |= name == "full disk"
        scene.before, reported = self._newest(), attempts.reports(scene.workdir)
        begun = time.monotonic()
        attempt = scene.start()
        reached = MOMENTS[moment](scene)
        if reached:
            kind.strike(scene)
        # others wait for a process that never joined them
        joins = self.job.processes > 1 and moment in ("before", "starting")
        bound = disturbances.LAUNCHER_SECONDS if joins else attempts.BOUND
        statuses = attempt.statuses(bound if reached else attempts.PATIENCE)
        kind.repair(scene)
        after = self._newest()
        if reached and exit_status.ENDED_AS_ASKED in kind.statuses:
            self._asked.add(after)
        again = max(attempts.last_report(scene.workdir) - after, 0)
        self.counts.again += again
        self.counts.statuses.update(str(status) for status in statuses)
        self._say(
            f"{where}{'' if reached else ' (not reached)'}: {scene.before} -> {after}, {again} "
            f"steps again, statuses {statuses}, {time.monotonic() - begun:.1f} s"
        )
        for problem in scene.problems:
            self._problem(where, problem, attempt)
        self._check(where, attempt, statuses, kind.statuses if reached else (), joins=joins)
        if after < scene.before:
            self._problem(where, f"the newest sound step was {scene.before} and is {after}")
        ends_as_asked = reached and set(statuses) == {exit_status.ENDED_AS_ASKED}
        # Reports of the attempt before may be there still: it was killed after them.
        has_reported = attempts.reports(scene.workdir) != reported
        if kind.saves and ends_as_asked and has_reported and again:
            self._problem(where, f"{again} steps were not saved", attempt)
        self.counts.not_reached += not reached
        if set(statuses) == {exit_status.DONE}:
            self._compare(where)
        return reached

    def _check(
        self,
        where: str,
        attempt: Attempt,
        statuses: Sequence[int | None],
        allowed: Sequence[int],
        *,
        joins: bool,
    ) -> None:
        """Checks how an attempt ended: statuses, reasons, and that no process stays behind."""
        whole = {exit_status.DONE}
        for index, status in enumerate(statuses):
            right = {*allowed, *whole, *(-number for number in attempt.sent[index])}
            if self.job.processes > 1:
                right.add(exit_status.STUCK)
            if status not in right and not (status is None and joins):
                self._problem(where, f"process {index} ended with {status}", attempt)
            if len(reasons := attempt.reasons(index)) > 1:
                self._problem(where, f"process {index} gives {len(reasons)} reasons", attempt)
            if "Traceback (most recent call last)" in attempt.text(index):
                self._problem(where, f"process {index} prints a traceback", attempt)
        if left := attempt.left_behind():
            self._problem(where, f"{len(left)} processes stay behind")

    def _finish(self) -> None:
        """Lets the run end undisturbed, and compares it."""
        self._scenes += 1
        where = f"{self._scenes:3d} undisturbed"
        attempt = self.job.start(self._workdir, self.place / "logs" / str(self._scenes))
        statuses = attempt.statuses(attempts.PATIENCE)
        self._check(where, attempt, statuses, (), joins=False)
        if set(statuses) == {exit_status.DONE}:
            self._compare(where)
        else:
            self._new_life()

    def _compare(self, where: str) -> None:
        """Compares a run that is done with the undisturbed one, and begins a new one."""
        for line in attempts.differences(
            self._whole, self._workdir, self.job.steps, asked=self._asked
        ):
            self._problem(where, line)
        if left := attempts.leftovers(self._workdir):
            self._problem(where, f"left over: {left}")
        damaged = self._workdir / "damaged"
        expected = {*os.listdir(self._whole), *(["damaged"] if self._damaged else [])}
        found = {*os.listdir(self._workdir)}
        if self._disk_was_full:  # it may have cut a line off
            found.discard("metrics.jsonl.damaged")
        if found != expected:
            self._problem(where, f"the workdir has {sorted(found)}; expected {sorted(expected)}")
        if self._damaged and damaged.is_dir():
            # a step that was damaged twice is there as STEP and STEP-2
            kept = {path.name.partition("-")[0] for path in damaged.iterdir()}
            if kept != set(map(str, self._damaged)):
                self._problem(where, f"damaged/ has {kept}; damaged were {self._damaged}")
        self.counts.runs += 1
        self._say(f"{where}: done, compared with the undisturbed run")
        shutil.rmtree(self._workdir)
        self._new_life()


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--stage", default="language_model")
    parser.add_argument("--evaluates", action="store_true", help="with --stage=contrastive")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas between them")
    parser.add_argument("--at", default=",".join(MOMENTS), help="moments, the same way")
    parser.add_argument("--place", help="a directory that is kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        place = pathlib.Path(options.place or temporary)
        world, towers = attempts.inputs(place / "inputs")
        place = place / f"{options.stage}-{options.processes}-{options.seed}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        job = make_job(options.stage, options.processes, world, towers, evaluates=options.evaluates)
        counts = torture(
            job,
            place,
            rounds=options.rounds,
            seed=options.seed,
            kinds=options.only.split(","),
            moments=options.at.split(","),
        )
    print(counts.table())
    return int(bool(counts.problems))


def torture(
    job: Job,
    place: pathlib.Path,
    *,
    rounds: int,
    seed: int,
    kinds: Sequence[str] = tuple(KINDS),
    moments: Sequence[str] = tuple(MOMENTS),
) -> Counts:
    """Disturbs a job so many times.

    Args:
        job: from `make_job`.
        place: a directory for the workdirs and logs.
        rounds: number of disturbances.
        seed: decides what is done.
        kinds: names of KINDS.
        moments: names of MOMENTS.
    """
    try:
        disk = Disk(place / "disk")
    except PermissionError as error:
        disk = None
        print(f"no small disk, so full and read-only ones are left out: {error}")
    try:
        return Torture(job, place, seed, disk).run(rounds, plan(seed, kinds, moments))
    finally:
        attempts.end_all()
        if disk:
            disk.close()


if __name__ == "__main__":
    sys.exit(main())
