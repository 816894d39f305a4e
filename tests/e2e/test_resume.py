"""A run that is killed at any moment, again and again, ends as if it had not been.

The same losses, the same weights, bit for bit.

The programs are run as a user runs them; SIGKILL leaves them no moment to tidy up. Where in a step
the kill falls is up to the clock, and different each time; the step that the test waits for is
drawn from a fixed seed.
"""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.checkpoint.store import steps as checkpoint_steps
from flamingo_jax.core.trees import flatten
from flamingo_jax.training import logs
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.training import small

STEPS, KILLS = 40, 3
PATIENCE = 240  # seconds that a program may take; far more than it does


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The program with everything but its workdir."""
    place = tmp_path_factory.mktemp("inputs")
    world = small.make_world(place / "world")
    towers = small.make_towers(place / "towers", world)
    flags = [
        "--config=tests/training/small.py:flamingo",
        f"--config.steps={STEPS}",
        *small.overrides("flamingo", world, towers),
    ]
    return [sys.executable, "-m", "flamingo_jax.train", *flags]


def start(command, workdir):
    environment = {**os.environ, "XLA_FLAGS": BASE_XLA_FLAGS}
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def finish(process, workdir):
    assert process.wait(timeout=PATIENCE) == 0, (
        workdir.parent / f"{workdir.name}.log"
    ).read_text()[-4000:]


def kill_after(process, workdir, step):
    """Kills a run as soon as it has reported `step`; it must not have ended by itself."""
    deadline = time.monotonic() + PATIENCE
    while not (rows := logs.read(workdir / "metrics.jsonl")) or rows[-1]["step"] < step:
        log = (workdir.parent / f"{workdir.name}.log").read_text()
        assert process.poll() is None, f"ended by itself with {process.returncode}:\n{log[-4000:]}"
        assert time.monotonic() < deadline, f"no step {step} in {PATIENCE} s:\n{log[-4000:]}"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=PATIENCE) == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(command, tmp_path_factory):
    """(workdir of a run in one go, workdir of one killed three times, the steps at which its parts began)."""
    place = tmp_path_factory.mktemp("runs")
    whole, killed = place / "whole", place / "killed"
    in_one_go = start(command, whole)
    rng, begun = np.random.default_rng(5), [0]
    for _ in range(KILLS):
        # Saved every second step; when the fifth from here is reported, the save at the second is
        # complete.
        kill_after(start(command, killed), killed, begun[-1] + int(rng.integers(5, 9)))
        begun.append(max(checkpoint_steps(killed), default=0))
    finish(start(command, killed), killed)
    finish(in_one_go, whole)
    return whole, killed, begun


def reports(workdir):
    rows = logs.read(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "step_seconds"} for row in rows]


def test_the_run_really_went_on_from_checkpoints(runs):
    begun = runs[2]
    assert len(begun) == KILLS + 1
    assert begun == sorted(set(begun)), f"each part begins later than the one before: {begun}"


def test_losses_are_the_same_bits(runs):
    whole, killed, _ = runs
    assert [row["step"] for row in reports(whole)] == list(range(1, STEPS + 1))
    assert reports(killed) == reports(whole)


def test_weights_and_moments_are_the_same_bits(runs):
    whole, killed, _ = runs
    # the exported model, and the last checkpoint's
    for path in (lambda run: run / "export", lambda run: run):
        a, b = open_checkpoint(path(whole)), open_checkpoint(path(killed))
        assert a.step == b.step == STEPS
        assert set(flatten(a.params)) == set(flatten(b.params))
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    hashes = [
        json.loads((run / "export" / "model.json").read_text())["content_hash"]
        for run in (whole, killed)
    ]
    assert hashes[0] == hashes[1]
    moments = [arrays_of(run) for run in (whole, killed)]
    assert any("opt_state" in name for name in moments[0])
    jax.tree.map(np.testing.assert_array_equal, *moments)


def arrays_of(workdir):
    """Everything in the last checkpoint's state, by name."""
    directory = workdir / "checkpoints" / str(STEPS) / "state"
    return arrays.read(directory, arrays.describe(directory))
